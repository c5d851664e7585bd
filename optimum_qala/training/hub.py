"""A Trainer whose pushes to the Hub are one commit each, with everything that loading needs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import Trainer
from transformers.utils import logging

from optimum_qala.models.hub import CARD_NAME, LIBRARY_NAME, hub_errors, push_folder


__all__ = ["HubTrainer"]

logger = logging.get_logger(__name__)

NOT_PUSHED = ("_*", "checkpoint-*")  # as in transformers


class HubTrainer(Trainer):
    """Trainer that makes the branch it pushes to, and says in one line what the Hub refused.

    Raises:
        HubError: If `push_to_hub` is set and the Hub refuses the token or does not answer.
    """

    def init_hf_repo(self, token: str | None = None) -> None:
        """Make the repository, and the branch `hub_revision`.

        Args:
            token: Access token; `hub_token` by default.
        """
        revision = self.args.hub_revision
        with hub_errors(self.args.hub_model_id or Path(self.args.output_dir).name, revision, pushes=True):
            super().init_hf_repo(token)
            if self.is_world_process_zero() and revision is not None and not revision.startswith("refs/"):
                api = HfApi(token=token or self.args.hub_token)
                api.create_branch(str(self.hub_model_id), branch=revision, exist_ok=True)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save model, tokenizer and arguments to `output_dir` and upload them in one commit, with a model card.

        Args:
            commit_message: Message of the commit.
            blocking: Wait for the upload; otherwise a `Future` is returned.
            token: Access token; `hub_token` by default.
            revision: Branch, made if it does not exist; `hub_revision` by default.
            kwargs: Arguments of transformers' `create_model_card`, such as `tags`.

        Returns:
            The commit, its `Future`, or None in a process that is not the first.

        Raises:
            HubError: If the Hub refuses the token, does not answer or breaks off. Nothing half-done stays there.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if self.processing_class is None and not hasattr(self.data_collator, "tokenizer"):
            logger.warning(
                "The Trainer has no tokenizer (processing_class), so none is pushed, and the pipeline will not find "
                "one; push it by tokenizer.push_to_hub"
            )
        repo_id = str(self.hub_model_id)
        tags = kwargs.pop("tags", None) or []
        tags = [*([tags] if isinstance(tags, str) else tags), *(getattr(self.model, "model_tags", None) or ())]
        self.create_model_card(**{"model_name": repo_id.rpartition("/")[2], "tags": tags or None, **kwargs})
        self._finish_current_push()
        push = partial(
            push_folder,
            Path(self.args.output_dir),
            repo_id,
            commit_message=commit_message or "End of training",
            token=token,
            revision=revision or self.args.hub_revision,
            ignore_patterns=NOT_PUSHED,
        )
        return push() if blocking else HfApi(token=token).run_as_future(push)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of transformers' Trainer, but for the library that loads the model.

        Args:
            args: Passed on.
            kwargs: Passed on.
        """
        super().create_model_card(*args, **kwargs)
        file = Path(self.args.output_dir, CARD_NAME)
        if self.is_world_process_zero():
            card = file.read_text(encoding="utf-8")
            named = card.replace("library_name: transformers\n", f"library_name: {LIBRARY_NAME}\n", 1)
            file.write_text(named, encoding="utf-8")

    def _finish_current_push(self) -> None:
        """Wait for pushes of checkpoints; transformers drops what went wrong with them."""
        super()._finish_current_push()
        pushes = getattr(self, "push_in_progress", None)
        for error in [] if pushes is None else [job.exception() for job in pushes.jobs if not job.cancelled()]:
            if error is not None:
                reason = str(error).strip().partition("\n")[0]
                logger.warning(f"A checkpoint was not pushed ({reason}); trainer.push_to_hub() pushes the model")
        if pushes is not None:
            pushes.jobs = []
