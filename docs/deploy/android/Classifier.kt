// A text classifier on Android. Into the app's assets: vocab.txt, config.json and mobile/model_quantized.pte (or .ort).
// build.gradle.kts, one of:
//   implementation("org.pytorch:executorch-android:1.5.1")
//   implementation("com.microsoft.onnxruntime:onnxruntime-android:1.23.0")

import android.content.Context
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import java.io.File
import java.nio.LongBuffer
import kotlin.math.exp
import org.json.JSONObject
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** One row in, one logit a label out. A row has no padding: the model takes any length up to its longest. */
fun interface Model {
    fun logits(ids: LongArray): FloatArray
}

class ProgramModel(file: File) : Model {
    private val module = Module.load(file.absolutePath)
    val maxLength = module.execute("max_length")[0].toInt().toInt()

    override fun logits(ids: LongArray): FloatArray {
        val shape = longArrayOf(1, ids.size.toLong())
        val inputs = listOf(ids, LongArray(ids.size)) // input_ids, token_type_ids: one text is all zeros
        return module.forward(*inputs.map { EValue.from(Tensor.fromBlob(it, shape)) }.toTypedArray())[0]
            .toTensor().dataAsFloatArray
    }
}

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

class Classifier(context: Context) {
    private val labels = JSONObject(text(context, "config.json")).getJSONObject("id2label")
    private val model: ProgramModel
    private val tokenizer: WordPiece

    init {
        val file = File(context.filesDir, "model_quantized.pte")
        if (!file.exists()) context.assets.open(file.name).use { from -> file.outputStream().use { from.copyTo(it) } }
        model = ProgramModel(file)
        tokenizer = WordPiece(text(context, "vocab.txt").lines(), model.maxLength)
    }

    /** Labels with their probabilities, the likeliest first. Not on the main thread. */
    fun classify(text: String): List<Pair<String, Float>> {
        val logits = model.logits(tokenizer.encode(text))
        val powers = logits.map { exp(it - logits.max()) }
        return powers.mapIndexed { id, power -> labels.getString("$id") to power / powers.sum() }.sortedByDescending { it.second }
    }

    private fun text(context: Context, name: String) = context.assets.open(name).bufferedReader().use { it.readText() }.trimEnd('\n')
}
