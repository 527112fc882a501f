"""Vision transformer with a classification head: an MLP for pre-training, a single linear layer for fine-tuning.

Source: Dosovitskiy et al. 2021, section 3.1, https://arxiv.org/abs/2010.11929; the distillation head: Touvron et al. 2021
(DeiT), section 4, https://arxiv.org/abs/2012.12877
"""

from typing import Any

import torch
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from ...blocks.classification import ClassificationHead
from ...parts.classifier import ResettableHead
from .configuration_vit import VisionTransformerConfig
from .modeling_vit import VisionTransformerModel, VisionTransformerPreTrainedModel, mean_of_patches


class VisionTransformerForImageClassification(ResettableHead, VisionTransformerPreTrainedModel):
    """A class for each picture, from the pooled vector, or where there is none the CLS token or the mean of the patches."""

    heads = ("classifier", "distillation_classifier")
    accepts_loss_kwargs = False  # the loss is a mean over pictures: the Trainer is to average accumulated batches

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__(config)
        self.vision_model = VisionTransformerModel(config)
        width, num_labels, depth = config.hidden_size, config.num_labels, config.num_linear_layers
        self.classifier = ClassificationHead(width, num_labels, depth)
        self.distillation_classifier = (
            ClassificationHead(width, num_labels, depth) if config.use_distillation_head else None
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        distillation_labels: torch.Tensor | None = None,
        **kwargs: object,
    ) -> ImageClassifierOutput:
        """Classify pictures.

        Args:
            pixel_values, interpolate_pos_encoding: as for `VisionTransformerModel`.
            labels: int64 (batch,), or float (batch, num_labels): see `blocks.classification.classification_loss`.
            distillation_labels: what the distillation head is to learn, such as the classes that a teacher finds (DeiT,
                eq. 3), which are not smoothed; by default the labels.
            kwargs: for `VisionTransformerModel`, such as `pixel_mask`.

        Returns: `logits`, float (batch, num_labels), with a distillation head the mean of both heads'; `loss`, a fp32
            scalar, the mean of both heads', None without labels.

        Raises:
            ValueError: if pictures or labels don't suit the model.
        """
        if distillation_labels is not None and self.distillation_classifier is None:
            raise ValueError(
                "`distillation_labels` are for a distillation head, got a model without. Build it with "
                "`use_distillation_token=True, use_distillation_head=True`."
            )
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        tokens, pooled = outputs.last_hidden_state, outputs.pooler_output
        if pooled is None:
            if self.config.use_cls_token:
                pooled = tokens[:, 0]
            else:
                pixel_mask: Any = kwargs.get("pixel_mask")
                real = None if pixel_mask is None else self.vision_model.patch_mask(pixel_mask)
                pooled = mean_of_patches(tokens, real, self.config.num_prefix_tokens)
        logits = self.classifier(pooled)
        loss = None if labels is None else self.head_loss(logits, labels)
        if self.distillation_classifier is not None:
            of_token = self.distillation_classifier(tokens[:, 1])
            if labels is not None:
                taught = labels if distillation_labels is None else distillation_labels
                of_teacher = self.head_loss(of_token, taught, is_smoothed=distillation_labels is None)
                loss = (self.head_loss(logits, labels) + of_teacher) / 2
            logits = (logits + of_token) / 2
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
