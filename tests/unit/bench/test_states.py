"""What the parts take adds up, and is what the settings promise."""

from importlib import import_module

states = import_module("bench.states")


def test_adapters_and_small_moments_take_less() -> None:
    rows = {(row["rank"], row["moments"]): row for row in states.rows("janus", [16])}
    whole, adapter = rows[None, "float32"], rows[16, "float32"]
    assert 1.69e9 < whole["trained"] < 1.70e9  # docs/models.md
    assert whole["gradients_gb"] == round(4 * whole["trained"] / 1e9, 2)
    assert whole["moments_gb"] == round(8 * whole["trained"] / 1e9, 2)
    assert rows[None, "bfloat16"]["moments_gb"] == round(4 * whole["trained"] / 1e9, 2)
    assert rows[None, "8bit"]["moments_gb"] < rows[None, "bfloat16"]["moments_gb"] * 0.52
    assert adapter["trained"] < whole["trained"] / 100
    assert adapter["weights_gb"] == round(whole["weights_gb"] + adapter["gradients_gb"], 2)
    frozen = whole["weights_gb"] - whole["gradients_gb"]
    assert 0.4 * frozen < whole["weights_gb"] - whole["weights_bfloat16_gb"] < 0.5 * frozen
    assert adapter["together_bfloat16_gb"] < 0.6 * adapter["together_gb"]
