"""The registered model as MLflow loads it: prompts in, PNG images out.

MLflow stores this file and runs it to load a version ("models from code"). Its checkpoint, an artifact that
``reca.tracking.registry.log_model`` logs, is a copy or, if it is large, a reference into DVC's cache.

    model = mlflow.pyfunc.load_model("models:/reca-janus_tiny@champion")
    images = model.predict(["a photo of a red circle"])        # base64 of PNG bytes, one per prompt
"""

import base64
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

CACHE_VARIABLE = "RECA_DVC_CACHE"


class TextToImageModel(PythonModel):
    """A unified model that generates images from prompts, in batches, each image from its own seed."""

    def load_context(self, context: Any) -> None:
        """Load the weights, on the GPU if there is one."""
        self._settings = json.loads(Path(context.artifacts["settings"]).read_text())
        if "checkpoint" in context.artifacts:
            checkpoint = Path(context.artifacts["checkpoint"])
        else:
            checkpoint = link_from_dvc_cache(json.loads(Path(context.artifacts["reference"]).read_text()))

        import torch  # takes seconds: missing weights are reported before

        from reca.models.loading import load_model

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_model(self._settings["family"], checkpoint, self._settings["options"], device)

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Generate one image per prompt.

        Args:
            context: The context of :meth:`load_context`.
            model_input: Prompts: a list, or the first column of the table that MLflow makes from a list.
            params: ``seed`` (0), ``guidance_scale``, ``temperature``, and ``num_steps`` where the family has it; the
                defaults are those that the model was evaluated with.

        Returns:
            Base64 of PNG bytes, in the order of the prompts. The same prompt and seed give the same image in any
            batch.
        """
        from reca.models.sampling import Sampling
        from reca.runtime.seeding import SampleRng, derive_seed

        parameters = {**self._settings["sampling"], **(params or {})}
        seed = parameters.pop("seed", 0)
        sampling, size = Sampling(**parameters), self._settings["batch_size"]
        prompts = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else list(model_input)
        images: list[str] = []
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            rng = SampleRng([derive_seed("serve", seed, prompt) for prompt in batch])
            images += [_png(image) for image in self._model.generate(batch, sampling, rng)]
        return images


def link_from_dvc_cache(reference: dict[str, Any]) -> Path:
    """Link the files of a checkpoint in the DVC cache into a temporary folder.

    Args:
        reference: ``{"md5": "….dir", "path", "commit", "cache"}`` as written at registration.

    Raises:
        FileNotFoundError: No cache holds it; the message says how to get it.
    """
    caches = [Path(folder) for folder in (os.environ.get(CACHE_VARIABLE), ".dvc/cache", reference["cache"]) if folder]
    for cache in caches:
        listing = _object(cache, reference["md5"])
        if not listing.is_file():
            continue
        entries = json.loads(listing.read_text())
        if not all(_object(cache, entry["md5"]).is_file() for entry in entries):
            continue
        folder = Path(tempfile.mkdtemp(prefix="reca-model-"))
        for entry in entries:
            (folder / entry["relpath"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / entry["relpath"]).symlink_to(_object(cache, entry["md5"]).resolve())
        return folder
    raise FileNotFoundError(
        f"the weights of this model ({reference['path']}, DVC hash {reference['md5']}) are in none of "
        f"{', '.join(map(str, caches))}; get them with `dvc fetch --run-cache` in the project at commit "
        f"{reference['commit']}, or name another DVC cache in {CACHE_VARIABLE}"
    )


def _object(cache: Path, md5: str) -> Path:
    return cache / "files/md5" / md5[:2] / md5[2:]


def _png(image: Any) -> str:
    """(3, S, S) in [-1, 1] -> base64 of PNG bytes."""
    from PIL import Image

    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


set_model(TextToImageModel())
