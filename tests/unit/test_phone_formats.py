"""What phones run: ExecuTorch programs and .ort files are the same model, small, and refused in one sentence."""

from types import SimpleNamespace

import onnx
import pytest
import torch
from torch import nn

from nlp_distill.errors import ExportInvalid, InputInvalid, MissingExtra, ModelNotFound, NotExportable
from nlp_distill.exports import executorch as executorch_format
from nlp_distill.exports.executorch_files import Int4Embedding, Int8Embedding, quiet, write_program
from nlp_distill.exports.executorch_model import ProgramModel
from nlp_distill.exports.formats import FORMATS
from nlp_distill.exports.onnx_files import export_fp32
from nlp_distill.exports.ort import OPERATORS, convert
from nlp_distill.loading import load_config, load_model, load_ort, load_ort_file, load_tokenizer
from nlp_distill.recipe import Export
from nlp_distill.task import load_task
from nlp_distill.testing import save_tiny, tiny_config

CLASSIFIER = "AutoModelForSequenceClassification"
INPUTS = ["input_ids", "token_type_ids"]
TEXTS = ["good", "a fine film and a lovely ending", "the plot is quite dull and the actor is not very good in it"]


def test_what_loses_too_much_gets_other_words_and_then_an_epoch(tmp_path, monkeypatch):
    """The ladder of a phone's program: words of 4 bits, of 8, and a student that was trained to be rounded."""
    made = []
    monkeypatch.setattr(
        "nlp_distill.exports.executorch_files.write_program",
        lambda model, inputs, longest, file, bits, first: made.append((model.name_or_path, bits)),
    )
    for name in ("student", "retrained"):
        save_tiny(tmp_path / name)
    work = SimpleNamespace(
        model=tmp_path / "student",
        task=load_task("classification"),
        tokenizer=load_tokenizer(tmp_path / "student"),
        retrained=lambda bits: tmp_path / "retrained",
    )
    for profile, expected in (("small", [4, 8, 8]), ("mobile", [8, 8]), ("exact", [None])):
        made.clear()
        entry = FORMATS["executorch"]
        for attempt in entry.attempts(work, entry.form(profile), Export()):
            attempt.write(tmp_path)
        assert [bits for _, bits in made] == expected


@pytest.mark.parametrize(("bits", "width", "steps"), [(8, 9, 127), (4, 32, 7), (4, 64, 7)])
def test_an_embedding_is_kept_to_half_a_step(bits, width, steps):
    table = nn.Embedding(20, width)
    kept = Int8Embedding(table) if bits == 8 else Int4Embedding(table)
    ids = torch.tensor([[3, 3, 19], [0, 7, 1]])
    with torch.no_grad():
        assert torch.equal(kept(ids), kept.weight[ids])
        step = table.weight.abs().amax(1, keepdim=True) / steps
        # A scale is float16 in 4 bits.
        assert ((kept.weight - table.weight).abs() <= step * (0.5 + 0.01)).all()
    assert kept.rows.element_size() * kept.rows.numel() == 20 * width * bits // 8


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """An int8 program of 2 layers, its model and its tokenizer."""
    folder = save_tiny(tmp_path_factory.mktemp("phone") / "model", num_hidden_layers=2)
    model, tokenizer = load_model(folder, CLASSIFIER), load_tokenizer(folder)
    file = folder / "mobile" / "model_quantized.pte"
    file.parent.mkdir()
    write_program(model, INPUTS, tokenizer.model_max_length, file, word_bits=8)
    return model, tokenizer, file


def read(program, texts):
    _, tokenizer, file = program
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    return ProgramModel(file, program[0].config)(**inputs).logits


def test_a_program_answers_as_its_model(program):
    model, tokenizer, _ = program
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        difference = (read(program, TEXTS) - model(**inputs).logits).abs().max()
    assert 0 < difference < 2e-3


def test_an_answer_depends_on_nothing_else_in_the_batch(program):
    alone = torch.cat([read(program, [text]) for text in TEXTS])
    assert torch.equal(read(program, TEXTS), alone)


def test_segments_are_read(program):
    _, tokenizer, file = program
    loaded = ProgramModel(file, program[0].config)
    pair = tokenizer("good film", "bad plot", return_tensors="pt")
    assert pair["token_type_ids"].any()
    assert not torch.equal(loaded(**pair).logits, loaded(input_ids=pair["input_ids"]).logits)


def test_a_program_says_what_it_takes_and_gives(program):
    loaded = ProgramModel(program[2], program[0].config)
    assert (loaded.max_length, loaded.input_names, loaded.output_names) == (64, INPUTS, ["logits"])
    with pytest.raises(InputInvalid, match="65 tokens; cut it to the 64"):
        loaded(input_ids=torch.ones(1, 65, dtype=torch.long))


def test_a_program_needs_no_quantized_kernels_and_holds_no_fp32_table(program):
    with quiet():
        from executorch.exir._serialize._program import deserialize_pte_binary
    plan = deserialize_pte_binary(program[2].read_bytes()).program.execution_plan[0]
    assert not [operator.name for operator in plan.operators if "quantized" in operator.name]
    assert [delegate.id for delegate in plan.delegates] and {d.id for d in plan.delegates} == {"XnnpackBackend"}
    sizes = [value.val.sizes for value in plan.values if type(value.val).__name__ == "Tensor"]
    table = list(program[0].get_input_embeddings().weight.shape)
    kinds = {v.val.scalar_type.name for v in plan.values if getattr(v.val, "sizes", None) == table}
    assert table in sizes and kinds == {"CHAR"}


def test_what_is_no_program_is_named(program, tmp_path):
    (tmp_path / "model.pte").write_bytes(b"nothing" * 100)
    with pytest.raises(ModelNotFound, match="no program that ExecuTorch reads"):
        ProgramModel(tmp_path / "model.pte", program[0].config)


def asked(name, profile):
    return Export.model_validate({"format": name, "profile": profile})


def test_what_cannot_be_made_is_known_before_training(monkeypatch):
    classification, phone, ort = load_task("classification"), FORMATS["executorch"], FORMATS["ort"]
    phone.check(tiny_config("bert"), classification, asked("executorch", "mobile"))
    with pytest.raises(NotExportable, match="reads a text and writes none"):
        phone.check(tiny_config("t5"), load_task("seq2seq"), asked("executorch", "mobile"))
    with pytest.raises(NotExportable, match="two graphs"):
        ort.check(tiny_config("t5"), load_task("seq2seq"), asked("ort", "mobile"))
    with pytest.raises(NotExportable, match="known are albert, bert"):
        phone.check(tiny_config("deberta-v2"), classification, asked("executorch", "mobile"))
    with pytest.raises(ExportInvalid, match="executorch has no profile 'fast'; choose one of small, mobile, exact"):
        phone.check(tiny_config("bert"), classification, asked("executorch", "fast"))
    monkeypatch.setattr(executorch_format.Executorch, "installed", False)
    with pytest.raises(MissingExtra, match=r"nlp-distill\[executorch\]"):
        phone.check(tiny_config("bert"), classification, asked("executorch", "mobile"))


def test_an_ort_file_is_its_onnx_file(program):
    folder = program[2].parent.parent
    (folder / "onnx").mkdir()
    export_fp32(folder, "text-classification", folder / "onnx")
    convert(folder / "onnx" / "model.onnx", folder / "mobile")
    inputs = dict(program[1](TEXTS, padding=True, return_tensors="pt"))
    ort = load_ort_file(folder, CLASSIFIER, "mobile/model.ort")
    exact = load_ort(folder, CLASSIFIER)
    assert torch.allclose(ort(**inputs).logits, exact(**inputs).logits, atol=1e-5)
    listed = (folder / "mobile" / f"model{OPERATORS}").read_text()
    used = {node.op_type for node in onnx.load(folder / "onnx" / "model.onnx").graph.node}
    assert "Gather" in used and "Gather{" in listed and "/tmp" not in listed
    assert load_config(folder).model_type == "bert"
    (folder / "mobile" / "model.ort").write_bytes(b"nothing" * 100)
    with pytest.raises(ModelNotFound, match=r"model\.ort cannot be read"):
        load_ort_file(folder, CLASSIFIER, "mobile/model.ort")
