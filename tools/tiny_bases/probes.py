"""Linear probes that supervise the vision tower's patches and Janus' gist states; they are not saved with a base."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca.data.synthetic.scenes import COLORS, MAX_OBJECTS, RELATIONS, SHAPES
from tools.tiny_bases.scene_labels import UNLABELED, PatchTags, SceneLabels


class Probes(nn.Module):
    """Small heads on patch tokens and gist states of width D; gist k belongs to the k-th kind of shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        slots = len(SHAPES)
        self.patch = nn.Linear(width, 1 + slots + len(COLORS) + 2)
        self.count = nn.Linear(width, MAX_OBJECTS + 1)
        self.color = nn.Linear(width, len(COLORS))
        self.color_set = nn.Linear(width, len(COLORS))
        self.position = nn.Linear(width, 2)
        self.relation = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(RELATIONS)))
        self.whole = nn.Linear(slots * width, 64)
        self.log_temperature = nn.Parameter(torch.tensor(2.3))

    def tag_loss(self, patches: Tensor, tags: PatchTags) -> Tensor:
        """Cross-entropies and offset error of patch tokens (B, P, D)."""
        out, slots, colors = self.patch(patches), len(SHAPES), len(COLORS)
        is_present = tags.present > 0
        present = F.binary_cross_entropy_with_logits(out[..., 0], tags.present)
        kind = F.cross_entropy(out[..., 1 : 1 + slots][is_present], tags.kinds[is_present])
        color = F.cross_entropy(out[..., 1 + slots : 1 + slots + colors][is_present], tags.colors[is_present])
        offset = F.mse_loss(out[..., -2:][is_present], tags.offsets[is_present])
        return 4 * present + kind + color + 5 * offset

    def gist_loss(self, gists: Tensor, labels: SceneLabels) -> Tensor:
        """Losses of gist states (B, S, D) against the samples' labels."""
        loss = 2 * F.cross_entropy(self.count(gists).flatten(0, 1), labels.counts.flatten(), ignore_index=UNLABELED)
        loss = loss + F.cross_entropy(self.color(gists).flatten(0, 1), labels.colors.flatten(), ignore_index=UNLABELED)
        logits, targets = self.relations(gists, labels)
        loss = loss + 1.5 * F.cross_entropy(logits, targets)
        has_position = ~labels.positions.isnan().any(-1)
        if bool(has_position.any()):
            loss = loss + 5 * F.mse_loss(self.position(gists)[has_position], labels.positions[has_position])
        return loss

    def color_set_loss(self, gists: Tensor, labels: SceneLabels) -> Tensor:
        """Loss on all colors of every kind, also if its shapes differ in color."""
        is_labeled = ~labels.color_sets.isnan()
        return F.binary_cross_entropy_with_logits(self.color_set(gists)[is_labeled], labels.color_sets[is_labeled])

    def relations(self, gists: Tensor, labels: SceneLabels) -> tuple[Tensor, Tensor]:
        """Logits and targets of every labeled relation of the batch."""
        sample, first, second = (labels.relations != UNLABELED).nonzero(as_tuple=True)
        pairs = torch.cat([gists[sample, first], gists[sample, second]], dim=-1)
        return self.relation(pairs), labels.relations[sample, first, second]

    def alignment_loss(self, image: Tensor, text: Tensor) -> Tensor:
        """Align image and caption of a scene as wholes (InfoNCE) and gist by gist (cosine)."""
        a, b = (F.normalize(self.whole(gists.flatten(1)), dim=-1) for gists in (image, text))
        scores = a @ b.T * self.log_temperature.exp().clamp(max=50)
        diagonal = torch.arange(len(scores))
        contrast = F.cross_entropy(scores, diagonal) + F.cross_entropy(scores.T, diagonal)
        return 0.3 * contrast + (1 - F.cosine_similarity(image, text, dim=-1)).mean()
