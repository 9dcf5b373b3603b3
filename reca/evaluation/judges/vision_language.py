"""Vision-language model of transformers that answers one question about images at a time, greedily."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from reca.data.images import decode
from reca.evaluation.judges.local_models import explain_load_errors


class VisionLanguageModel:
    """An image-text-to-text model of transformers, with a processor that has a chat template."""

    def __init__(self, network: Any, processor: Any) -> None:
        self._network, self._processor = network.eval(), processor

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """Load a local folder onto a device, on a GPU in bfloat16.

        Raises:
            FileNotFoundError: ``config.json`` is missing.
            ValueError: The folder holds another kind of model.
        """
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with explain_load_errors(folder, "vision-language model"):
            network = AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=dtype
            )
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return cls(network.to(device), processor)

    @torch.inference_mode()
    def reply(self, text: str, images: Sequence[Path], max_tokens: int) -> str:
        """Return the greedy answer to one question; the images come before its text."""
        loaded_images = [decode(path.read_bytes()) for path in images]
        content: list[dict[str, Any]] = [{"type": "image"} for _ in loaded_images]
        messages: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        prompt = self._processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self._processor(text=[prompt], images=loaded_images or None, return_tensors="pt")
        inputs = inputs.to(self._network.device)
        output = self._network.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        return str(self._processor.batch_decode(new_tokens, skip_special_tokens=True)[0])
