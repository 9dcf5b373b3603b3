"""Memory of full training, adapters and low-bit moments."""

from importlib import import_module

states = import_module("bench.states")


def test_adapters_and_low_bit_moments_take_less() -> None:
    rows = {(row["rank"], row["moments"]): row for row in states.rows("janus", [16])}
    full, adapter = rows[None, "float32"], rows[16, "float32"]
    assert 1.69e9 < full["trained"] < 1.70e9  # docs/models.md
    assert full["gradients_gb"] == round(4 * full["trained"] / 1e9, 2)
    assert full["moments_gb"] == round(8 * full["trained"] / 1e9, 2)
    assert rows[None, "bfloat16"]["moments_gb"] == round(4 * full["trained"] / 1e9, 2)
    assert rows[None, "8bit"]["moments_gb"] < rows[None, "bfloat16"]["moments_gb"] * 0.52
    assert adapter["trained"] < full["trained"] / 100
    assert adapter["weights_gb"] == round(full["weights_gb"] + adapter["gradients_gb"], 2)
    frozen = full["weights_gb"] - full["gradients_gb"]
    assert 0.4 * frozen < full["weights_gb"] - full["weights_bfloat16_gb"] < 0.5 * frozen
    assert adapter["together_bfloat16_gb"] < 0.6 * adapter["together_gb"]
