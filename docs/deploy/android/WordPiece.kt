// The tokenizer of uncased BERT models (MiniLM among them) in plain Kotlin, from `model/vocab.txt`.

import java.text.Normalizer

class WordPiece(vocabulary: List<String>, private val maxLength: Int) {
    private val ids = vocabulary.withIndex().associate { (id, token) -> token to id.toLong() }
    private val unknown = ids.getValue("[UNK]")

    /** Ids of a text, or of a question and its context; what is too long is cut from the last text. */
    fun encode(text: String, second: String? = null): LongArray {
        val parts = listOfNotNull(text, second).map { pieces(it).map { piece -> piece.id } }
        val room = maxLength - 1 - parts.size
        val first = parts[0].take(if (second == null) room else room - 1)
        val rest = parts.drop(1).flatMap { it.take(room - first.size) + ids.getValue("[SEP]") }
        return (listOf(ids.getValue("[CLS]")) + first + ids.getValue("[SEP]") + rest).toLongArray()
    }

    /** A piece's id, and the words' place in the text: of an answer, from the first piece's start to the last's end. */
    data class Piece(val id: Long, val start: Int, val end: Int)

    fun pieces(text: String): List<Piece> = words(text).flatMap { (start, end) -> split(text, start, end) }

    private fun words(text: String): List<Pair<Int, Int>> {
        val found = mutableListOf<Pair<Int, Int>>()
        var start = -1
        var at = 0
        fun close(end: Int) {
            if (start >= 0) found += start to end
            start = -1
        }
        while (at < text.length) {
            val code = text.codePointAt(at)
            val next = at + Character.charCount(code)
            if (isSpace(code)) close(at)
            else if (isPunctuation(code) || isIdeograph(code)) { close(at); found += at to next }
            else if (!isControl(code) && start < 0) start = at
            at = next
        }
        close(text.length)
        return found
    }

    private fun split(text: String, start: Int, end: Int): List<Piece> {
        val word = normal(text.substring(start, end))
        if (word.length > 100) return listOf(Piece(unknown, start, end))
        val pieces = mutableListOf<Piece>()
        var from = 0
        while (from < word.length) {
            val mark = if (from == 0) "" else "##"
            val to = (word.length downTo from + 1).firstOrNull { mark + word.substring(from, it) in ids }
                ?: return listOf(Piece(unknown, start, end))
            // Where accents were taken off, letters no longer count alike; the word's borders still do.
            val same = word.length == end - start
            pieces += Piece(ids.getValue(mark + word.substring(from, to)),
                if (same) start + from else start, if (same) start + to else end)
            from = to
        }
        return pieces
    }

    private fun normal(word: String) = Normalizer.normalize(word, Normalizer.Form.NFD).codePoints().toArray()
        .filter { Character.getType(it) != Character.NON_SPACING_MARK.toInt() && !isControl(it) }
        .joinToString("") { String(Character.toChars(it)) }.lowercase()

    private fun isSpace(code: Int) = code in intArrayOf(9, 10, 13) || Character.isSpaceChar(code)

    private fun isControl(code: Int) = code == 0 || code == 0xFFFD || (!isSpace(code) && Character.getType(code).toByte() in
        byteArrayOf(Character.CONTROL, Character.FORMAT, Character.PRIVATE_USE, Character.SURROGATE, Character.UNASSIGNED))

    private fun isPunctuation(code: Int) = code in 33..47 || code in 58..64 || code in 91..96 || code in 123..126 ||
        Character.getType(code).toByte() in byteArrayOf(
            Character.CONNECTOR_PUNCTUATION, Character.DASH_PUNCTUATION, Character.START_PUNCTUATION,
            Character.END_PUNCTUATION, Character.INITIAL_QUOTE_PUNCTUATION, Character.FINAL_QUOTE_PUNCTUATION,
            Character.OTHER_PUNCTUATION)

    private fun isIdeograph(code: Int) = code in 0x4E00..0x9FFF || code in 0x3400..0x4DBF || code in 0x20000..0x2A6DF ||
        code in 0x2A700..0x2B73F || code in 0x2B740..0x2B81F || code in 0x2B820..0x2CEAF || code in 0xF900..0xFAFF ||
        code in 0x2F800..0x2FA1F
}
