"""The one door through which models and tokenizers enter.

Weights are safetensors only, no code of a model's repository is ever run, and libraries see a clean copy of the
folder (`vetting`), never the folder itself. Importing this module loads no heavy library.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlp_distill.errors import (
    ConfigInvalid,
    MissingExtra,
    ModelNotFound,
    ModelUnsafe,
)
from nlp_distill.families import COMPOSED, known_model_types, unknown_family
from nlp_distill.sessions import session_options
from nlp_distill.sources import TOKENIZER_FILES
from nlp_distill.vetting import check_folder, check_weights, clean_copy, inside, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


OFFSET_POSITIONS = ("roberta", "xlm-roberta", "mpnet")
NO_LIMIT = 1024
"""Tokens kept of an input where neither the user nor the model says how many."""
UNSAID = 10**20
"""transformers' `model_max_length` of a tokenizer that says none is far beyond it."""
NEW_PARTS = 50_000_000
"""Parameters that a model may have beyond twice what its weights hold: new heads, cross attention."""


def load_config(folder: Path, **settings: Any) -> PretrainedConfig:
    """A model's config with `settings` on top. Raises `ModelNotFound`, `ModelUnsafe`, `UnknownFamily`."""
    from transformers import CONFIG_MAPPING

    values = read_settings(folder, "config.json")
    _check_family(folder, values)
    # Of names and a number transformers believes the names; both always come from the same side here.
    if "id2label" in settings:
        settings.pop("num_labels", None)
        values.pop("num_labels", None)
    elif "num_labels" in settings and settings["num_labels"] != len(values.get("id2label") or ()):
        values.pop("id2label", None)
        values.pop("label2id", None)
    kind = CONFIG_MAPPING[values["model_type"]]
    # transformers makes an attribute of every key; methods stay methods.
    values = {key: value for key, value in values.items() if not callable(getattr(kind, key, None))}
    for name in ("dtype", "torch_dtype"):
        # Everything is loaded in float32.
        values.pop(name, None)
    try:
        config: PretrainedConfig = kind.from_dict({**values, **settings})
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigInvalid(reference=str(folder), reason=f"{type(error).__name__}: {error}") from error
    return config


def _check_family(folder: Path, values: dict[str, Any]) -> None:
    """Only architectures that we know, with weights that are numbers as they are."""
    model_type = values.get("model_type")
    composed = isinstance(model_type, str) and model_type in COMPOSED
    parts = [values.get(part) for part in ("encoder", "decoder")] if composed else []
    for kind in (model_type, *(part.get("model_type") if isinstance(part, dict) else None for part in parts)):
        if not isinstance(kind, str) or kind not in known_model_types():
            raise unknown_family(str(folder), kind)
    if values.get("quantization_config") is not None:
        raise ModelUnsafe(
            reference=folder, reason="its weights are quantized already", fix="Choose the model that it was made from."
        )


@contextmanager
def _sense(folder: Path, reason: str) -> Iterator[None]:
    """Libraries fail in many ways on files that make no sense; we say which folder it was."""
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        told = str(error).split("\n")[0]
        if "memory" in told:
            raise
        raise ModelNotFound(reference=folder, reason=f"{reason} ({told})", fix="Get the files anew.") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers are those of `seed`; afterwards they go on as if nothing had been."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence "newly initialized": a new head is what we ask for; and what Marian's tokenizer would like beside it."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
            yield
    finally:
        logging.set_verbosity(before)


def load_model(folder: Path, auto_class: str, seed: int = 0, **config_settings: Any) -> PreTrainedModel:
    """A model in float32, in evaluation mode; weights that the folder lacks (a new head) come from `seed`.

    A head of another size is replaced by a new one where the settings ask for other labels, and nothing else is.
    Raises `ModelNotFound` for weights that cannot be read or do not fit the config, `UnknownFamily`.
    """
    import torch
    import transformers

    config = load_config(folder, **config_settings)
    if (folder / "adapter_config.json").is_file():
        raise ModelNotFound(
            reference=str(folder),
            reason="it holds an adapter, not a model",
            fix="Merge the adapter into its base first.",
        )
    model: PreTrainedModel
    with clean_copy(folder, weights=True) as clean, _sense(folder, "config.json and weights do not go together"):
        _check_size(folder, config, auto_class)
        with seeded(seed), _quiet():
            model, found = getattr(transformers, auto_class).from_pretrained(
                clean,
                config=config,
                torch_dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    model.config._name_or_path = str(folder)
    _check_complete(folder, model, found["missing_keys"])
    _check_fit(folder, model, found["mismatched_keys"], new_labels={"num_labels", "id2label"} & {*config_settings})
    return model.eval()


def _check_size(folder: Path, config: PretrainedConfig, auto_class: str) -> None:
    """Refuse, before memory is taken, a config that asks for far more than the weights hold. Raises `ModelUnsafe`."""
    stored = check_weights(folder)
    asked = shape_of(config, auto_class)[0]
    if asked > 2 * stored + NEW_PARTS:
        raise ModelUnsafe(
            reference=folder,
            reason=f"its config.json asks for {asked:,} parameters and its weights hold {stored:,}",
            fix="Get the files anew.",
        )


def _check_complete(folder: Path, model: PreTrainedModel, missing: Iterable[str]) -> None:
    """Refuse a folder that lacks weights of the body; only a head and a pooler may be new."""
    body = f"{model.base_model_prefix}."
    lost = [n for n in missing if (n.startswith(body) or model.base_model is model) and "pooler" not in n]
    if lost:
        raise ModelNotFound(
            reference=str(folder),
            reason=f"its weights lack {sorted(lost)[0]}, which its config.json promises",
            fix="Get the folder anew.",
        )


def _check_fit(folder: Path, model: PreTrainedModel, mismatched: Iterable[Any], new_labels: set[str]) -> None:
    """Refuse weights of other sizes than the config says, except the head's where other labels were asked for."""
    names = [name if isinstance(name, str) else name[0] for name in mismatched]
    body = f"{model.base_model_prefix}."
    wrong = [name for name in names if not new_labels or model.base_model is model or name.startswith(body)]
    if wrong:
        raise ModelNotFound(
            reference=str(folder),
            reason=f"its weights do not fit its config.json ({wrong[0]} has another size)",
            fix="Get the folder anew.",
        )


def new_model(config: PretrainedConfig, auto_class: str, seed: int) -> PreTrainedModel:
    """A model with random weights from `seed`, in float32, in evaluation mode."""
    import transformers

    with seeded(seed), _quiet():
        model: PreTrainedModel = getattr(transformers, auto_class).from_config(config, trust_remote_code=False)
    return model.float().eval()


def shape_of(config: PretrainedConfig, auto_class: str) -> tuple[int, int, int]:
    """Parameters of a model of this config: in all, in embeddings, in an output over the vocabulary that shares them.

    Uses no memory.
    """
    import torch
    import transformers

    with torch.device("meta"), _quiet():
        model = getattr(transformers, auto_class).from_config(config, trust_remote_code=False)
    embedded = model.get_input_embeddings().weight.numel()
    output = model.get_output_embeddings()
    shared = output is not None and output.weight is model.get_input_embeddings().weight
    return model.num_parameters(), embedded, output.weight.numel() if shared else 0


def has_class(folder: Path, auto_class: str) -> bool:
    """Whether models of the folder's type can be of the class at all."""
    import transformers

    return type(load_config(folder)) in getattr(transformers, auto_class)._model_mapping


def warm_start(folder: Path, seed: int) -> PreTrainedModel:
    """An encoder-decoder of two copies of an encoder; what the encoder lacks (cross attention) comes from `seed`."""
    from transformers import AutoModel, AutoModelForCausalLM, EncoderDecoderModel

    common: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    config = load_config(folder, is_decoder=True, add_cross_attention=True)
    with clean_copy(folder, weights=True) as clean, _sense(folder, "config.json and weights do not go together"):
        _check_size(folder, config, "AutoModelForCausalLM")
        with seeded(seed), _quiet():
            encoder = AutoModel.from_pretrained(clean, config=load_config(folder), **common)
            decoder = AutoModelForCausalLM.from_pretrained(clean, config=config, **common)
            model: PreTrainedModel = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    return model.float().eval()


def has_head(folder: Path, auto_class: str) -> bool:
    """Whether the weights were saved by the class that `auto_class` would build."""
    import transformers

    config = load_config(folder)
    built = getattr(transformers, auto_class)._model_mapping.get(type(config), None)
    return built is not None and built.__name__ in architectures(folder)


def architectures(folder: Path) -> list[str]:
    """Classes that a folder's weights were saved by, as it says."""
    named = read_settings(folder, "config.json").get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def load_tokenizer(folder: Path, max_length: int | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer, fast where there is one, without fixed padding or truncation; `max_length` becomes its limit, within
    the model's.
    """
    from transformers import AutoTokenizer

    config = load_config(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelNotFound(reference=str(folder), reason="it has no tokenizer", fix="Add its tokenizer.json.")
    with clean_copy(folder, tokenizer=True) as clean, _sense(folder, "its tokenizer cannot be read"), _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                clean, config=config, use_fast=True, local_files_only=True, trust_remote_code=False
            )
        except MemoryError:
            raise
        except Exception as error:
            # The tokenizers library raises nothing more precise.
            raise ValueError(error) from error
    tokenizer.name_or_path = str(folder)
    if vocabulary := getattr(tokenizer, "vocab_file", None):
        # A SentencePiece model, which is saved by copying its file.
        tokenizer.vocab_file = str(folder / Path(vocabulary).name)
    _free(tokenizer)
    # Places of answers and of hidden words are counted from the left.
    tokenizer.padding_side = "right"
    if config.is_encoder_decoder:
        # An encoder's own tokenizer may give what a composed model does not take.
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    # Rows are padded in batches of their own lengths; the advice to pad while tokenising is not for us.
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    limit = position_limit(config)
    said = tokenizer.model_max_length
    wanted = max_length or (said if said < UNSAID else NO_LIMIT)
    tokenizer.model_max_length = min(wanted, limit) if limit else wanted
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def _free(tokenizer: PreTrainedTokenizerBase) -> None:
    """Neither padding nor truncation but what a call asks for."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


def position_limit(config: PretrainedConfig) -> int | None:
    """Tokens that a model has positions for; None where positions are relative and any number will do."""
    config = getattr(config, "encoder", config)
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    # RoBERTa and its like count positions from behind the padding's id.
    offset = (config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0
    return positions - offset


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer, as stock classes load them."""
    model.config._name_or_path = ""
    model.save_pretrained(folder, safe_serialization=True)
    _free(tokenizer)
    tokenizer.name_or_path = ""
    tokenizer.save_pretrained(folder)


def onnx_files(folder: Path, suffix: str) -> dict[str, str]:
    """The ONNX files with a suffix (`_quantized`) that a model folder holds: part → name; empty when none.

    One file, or an encoder and a decoder (merged with the one that takes its past, where the model keeps one).
    """
    whole, encoder = f"model{suffix}.onnx", f"encoder_model{suffix}.onnx"
    if (folder / "onnx" / whole).is_file():
        return {"file_name": whole}
    decoders = [f"decoder_model_merged{suffix}.onnx", f"decoder_model{suffix}.onnx"]
    found = [name for name in decoders if (folder / "onnx" / name).is_file()]
    if not (folder / "onnx" / encoder).is_file() or not found:
        return {}
    return {"encoder_file_name": encoder, "decoder_file_name": found[0]}


def load_ort(folder: Path, auto_class: str, suffix: str = "", threads: int | None = None) -> Any:
    """An Optimum ORTModelFor… of the files with a suffix in `folder/onnx`. Raises `MissingExtra`."""
    kind, session = _ort(auto_class, threads)
    check_folder(folder)
    for file in (folder / "onnx").iterdir():
        inside(folder, f"onnx/{file.name}")
    config, files = load_config(folder), onnx_files(folder, suffix)
    # Optimum's own loading would read the folder's other files, and a merged decoder twice.
    with _graphs(folder, files):
        sessions = [session(folder / "onnx" / name) for name in files.values()]
    if "decoder_file_name" not in files:
        return kind(config=config, session=sessions[0])
    generation = load_generation(folder)
    generation.use_cache = config.use_cache = "merged" in files["decoder_file_name"]
    config.is_encoder_decoder = True
    encoder, decoder = sessions
    return kind(config=config, encoder_session=encoder, decoder_session=decoder, generation_config=generation)


def load_ort_file(folder: Path, auto_class: str, name: str, threads: int | None = None) -> Any:
    """An Optimum ORTModelFor… of one graph in a model folder. Raises `MissingExtra`, `ModelNotFound`."""
    kind, session = _ort(auto_class, threads)
    check_folder(folder)
    inside(folder, name)
    with _graphs(folder, {"file_name": name}):
        return kind(config=load_config(folder), session=session(folder / name))


def _ort(auto_class: str, threads: int | None) -> tuple[Any, Any]:
    """Optimum's class, and a function that opens a graph."""
    try:
        import onnxruntime
        from optimum import onnxruntime as optimum_ort
    except ImportError as error:
        raise MissingExtra(what="ONNX Runtime", extra="onnx") from error
    options = session_options(threads)
    kind = getattr(optimum_ort, auto_class.replace("AutoModel", "ORTModel"))
    return kind, lambda file: onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])


@contextmanager
def _graphs(folder: Path, files: dict[str, str]) -> Iterator[None]:
    """Turn what ONNX Runtime says of files that are no graphs into a `ModelNotFound`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        yield
    except (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf) as error:
        names = " and ".join(files.values())
        reason = f"its {names} cannot be read ({error})"
        raise ModelNotFound(reference=str(folder), reason=reason, fix="Export it anew.") from error


def load_generation(folder: Path) -> Any:
    """How a model generates, from `generation_config.json`, else its config; scrubbed."""
    from transformers import GenerationConfig

    if not inside(folder, "generation_config.json"):
        return GenerationConfig.from_model_config(load_config(folder))
    settings = read_settings(folder, "generation_config.json")
    try:
        # It stands for itself now: transformers must not compare it with the model's config again.
        return GenerationConfig.from_dict({**settings, "_from_model_config": False})
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"its generation_config.json cannot be used ({error})"
        raise ModelNotFound(reference=str(folder), reason=reason, fix="Correct or remove it.") from error
