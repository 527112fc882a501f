"""transformers' model mixin for classes that live outside transformers."""

from unittest.mock import patch

from transformers_tests import test_modeling_common
from transformers_tests.test_modeling_common import ModelTesterMixin

from hf_vlm.blocks.patch_embed import PatchEmbedding


class ExternalModelMixin(ModelTesterMixin):
    """`ModelTesterMixin` that is told what it would look up in transformers' tables of its own classes.

    Attributes:
        auto_classes: name of a table of the built-in auto classes -> those of our classes that it would list, were they
            built in. It decides which classes are trained, with which labels, and which losses are checked.
    """

    auto_classes: dict[str, tuple[type, ...]] = {}
    # The test of missing weights asks every model except those that were in transformers before 2023.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        built_in = test_modeling_common.get_values

        def get_values(table: dict) -> list[str]:
            values = list(built_in(table))
            for name, classes in self.auto_classes.items():
                if table is getattr(test_modeling_common, name):
                    values += [own_class.__name__ for own_class in classes]
            return values

        patcher = patch.object(test_modeling_common, "get_values", get_values)
        patcher.start()
        self.addCleanup(patcher.stop)

    def test_can_load_ignoring_mismatched_shapes(self) -> None:
        """Where transformers raises a `RuntimeError` over a shape, ours is a `ValueError` that names the folder."""
        expect = self.assertRaises

        def expect_ours(error: type[Exception], *args: object, **kwargs: object) -> object:
            return expect(ValueError if error is RuntimeError else error, *args, **kwargs)

        with patch.object(self, "assertRaises", expect_ours):
            super().test_can_load_ignoring_mismatched_shapes()

    def test_enable_input_require_grads_with_gradient_checkpointing(self) -> None:
        """The mixin's test reads the `weight` of what embeds the input; that of patches is their projection's."""
        weight = property(lambda patches: patches.projection.weight)
        with patch.object(PatchEmbedding, "weight", weight, create=True):
            super().test_enable_input_require_grads_with_gradient_checkpointing()
