// A field, a button and the answer. With Classifier.kt and WordPiece.kt beside it this is the whole app.

import android.app.Activity
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.TextView
import kotlin.concurrent.thread

class MainActivity : Activity() {
    private val classifier by lazy { Classifier(applicationContext) }

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        val field = EditText(this).apply { setText("A moving, beautiful film.") }
        val answer = TextView(this)
        val button = Button(this).apply { text = "Classify" }
        button.setOnClickListener {
            val asked = field.text.toString()
            // Reading the model takes a moment, too; both happen beside the main thread.
            thread {
                val said = classifier.classify(asked).joinToString("\n") { (label, share) -> "%s %.1f %%".format(label, 100 * share) }
                runOnUiThread { answer.text = said }
            }
        }
        setContentView(LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            listOf(field, button, answer).forEach { addView(it) }
        })
    }
}
