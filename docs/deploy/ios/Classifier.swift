// A text classifier on iOS and macOS. Into the app's bundle: the folder `model` with config.json, tokenizer.json,
// tokenizer_config.json and mobile/model_quantized.pte.
// Swift packages:
//   https://github.com/pytorch/executorch, branch swiftpm-1.5.1: executorch, backend_xnnpack, kernels_optimized
//     (with -all_load in Other Linker Flags, or no kernel is registered)
//   https://github.com/huggingface/swift-transformers: Tokenizers

import ExecuTorch
import Foundation
import Tokenizers

struct ModelConfig: Decodable {
    let id2label: [String: String]
}

actor Classifier {
    private let labels: [String]
    private let tokenizer: Tokenizer
    private let module: Module
    private let maxLength: Int
    private let inputs: [String]

    init(folder: URL) async throws {
        let config = try JSONDecoder().decode(ModelConfig.self, from: Data(contentsOf: folder.appending(path: "config.json")))
        labels = (0..<config.id2label.count).map { config.id2label[String($0)]! }
        tokenizer = try await AutoTokenizer.from(modelFolder: folder)
        module = Module(filePath: folder.appending(path: "mobile/model_quantized.pte").path())
        try module.load("forward")
        let longest: Int = try module.execute("max_length")[0].value()!
        maxLength = longest
        let names: String = try module.execute("inputs")[0].value()!
        inputs = names.components(separatedBy: ",")
    }

    /// Labels with their probabilities, the likeliest first.
    func classify(_ text: String) throws -> [(label: String, probability: Float)] {
        var ids = tokenizer.encode(text: text)
        if ids.count > maxLength { ids = Array(ids.prefix(maxLength - 1)) + [ids.last!] }
        // No padding: the program takes any length. It names its inputs; token_type_ids of one text are all zeros.
        let rows = inputs.map { $0 == "input_ids" ? ids.map(Int64.init) : [Int64](repeating: 0, count: ids.count) }
        let logits: Tensor<Float> = try module.forward(rows.map { Tensor<Int64>($0, shape: [1, ids.count]) })[0].tensor()!
        let powers = logits.scalars().map { exp($0) }
        let sum = powers.reduce(0, +)
        return zip(labels, powers).map { ($0, $1 / sum) }.sorted { $0.probability > $1.probability }
    }
}
