"""Forms of a student that are learnt: quantization-aware training."""
