// The same with ONNX Runtime, for mobile/model_quantized.ort among the assets. In Classifier.kt:
//   private val model = OrtModel(context.assets.open("model_quantized.ort").use { it.readBytes() })
//   private val tokenizer = WordPiece(text(context, "vocab.txt").lines(), 128) // the tokenizer's model_max_length
// build.gradle.kts:
//   implementation("com.microsoft.onnxruntime:onnxruntime-android:1.23.0")

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import java.nio.LongBuffer

class OrtModel(bytes: ByteArray) : Model {
    private val environment = OrtEnvironment.getEnvironment()
    private val session = environment.createSession(bytes)

    override fun logits(ids: LongArray): FloatArray {
        val rows = mapOf("input_ids" to ids, "attention_mask" to LongArray(ids.size) { 1 }, "token_type_ids" to LongArray(ids.size))
        val shape = longArrayOf(1, ids.size.toLong())
        val inputs = rows.filterKeys { it in session.inputNames }
            .mapValues { (_, row) -> OnnxTensor.createTensor(environment, LongBuffer.wrap(row), shape) }
        try {
            session.run(inputs).use { found ->
                @Suppress("UNCHECKED_CAST")
                return (found[0].value as Array<FloatArray>)[0]
            }
        } finally {
            inputs.values.forEach { it.close() }
        }
    }
}
