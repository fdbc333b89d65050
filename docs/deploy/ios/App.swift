// A field, a button and the answer. With Classifier.swift beside it this is the whole app.

import SwiftUI

@main
struct SampleApp: App {
    var body: some Scene { WindowGroup { ContentView() } }
}

struct ContentView: View {
    @State private var text = "A moving, beautiful film."
    @State private var answer = ""
    @State private var classifier: Classifier?

    var body: some View {
        VStack {
            TextField("Text", text: $text)
            Button("Classify") { Task { await classify() } }
            Text(answer)
        }.padding()
    }

    private func classify() async {
        do {
            if classifier == nil {
                classifier = try await Classifier(folder: Bundle.main.url(forResource: "model", withExtension: nil)!)
            }
            let found = try await classifier!.classify(text)
            answer = found.map { "\($0.label) \(String(format: "%.1f", 100 * $0.probability)) %" }.joined(separator: "\n")
        } catch {
            answer = "\(error)"
        }
    }
}
