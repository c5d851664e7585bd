"""Saving the code of a model beside it, for machines without optimum-qala that pass `trust_remote_code=True`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


__all__ = ["RemoteCodeModel"]

# What config.json names for each Auto class. Files are copied together with the siblings that they import. Of a local
# folder transformers loads only those that the named files themselves import, so these must import all of them.
AUTO_MAP = {
    "AutoConfig": "configuration_quala_minilm.QuaLAMiniLMConfig",
    "AutoModel": "modeling_quala_minilm.QuaLAMiniLMModel",
    "AutoModelForQuestionAnswering": "modeling_quala_minilm.QuaLAMiniLMForQuestionAnswering",
}


class RemoteCodeModel:
    """A torch model that can be saved with its code. Goes before `HubModel` and `PreTrainedModel` among the bases."""

    save_options: Collection[str] = ("max_shard_size", "remote_code", "variant")
    config: Any
    auto_class = "AutoModel"  # which loads it
    _auto_class: str | None  # that of transformers: None saves no code

    def save_pretrained(self, save_directory: Any, *args: Any, remote_code: bool = False, **kwargs: Any) -> None:
        """Save as `PreTrainedModel` does, on request with the code of the model.

        A model that was loaded from a folder with its code, saved with it before, or registered by
        `register_for_auto_class`, keeps it.

        Args:
            save_directory: Folder; made if it does not exist.
            args: Passed on.
            remote_code: Copy the code beside the model, and name it in config.json: `from_pretrained` of the Auto
                classes then loads the model with `trust_remote_code=True` where optimum-qala is not installed.
            kwargs: Passed on.
        """
        if remote_code or self._auto_class is not None or getattr(self.config, "auto_map", None):
            self.keep_code()
            self.config._auto_class = "AutoConfig"
            # Not what the configuration says: code of a repository that was loaded from is named with the repository.
            self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]  # of PreTrainedModel

    def keep_code(self) -> None:
        """Have every `save_pretrained` of this model save its code."""
        self._auto_class = self._auto_class or self.auto_class
