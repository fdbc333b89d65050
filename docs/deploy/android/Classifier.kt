// A text classifier on Android. Into the app's assets: vocab.txt, config.json and mobile/model_quantized.pte.
// build.gradle.kts:
//   implementation("org.pytorch:executorch-android:1.5.1")

import android.content.Context
import java.io.File
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
    private val inputs = module.execute("inputs")[0].toStr().split(",")
    val maxLength = module.execute("max_length")[0].toInt().toInt()

    override fun logits(ids: LongArray): FloatArray {
        val shape = longArrayOf(1, ids.size.toLong())
        // input_ids and, where the tokenizer has them, token_type_ids: those of one text are all zeros.
        val rows = inputs.map { if (it == "input_ids") ids else LongArray(ids.size) }
        return module.forward(*rows.map { EValue.from(Tensor.fromBlob(it, shape)) }.toTypedArray())[0]
            .toTensor().dataAsFloatArray
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
