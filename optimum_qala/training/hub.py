"""A Trainer whose pushes to the Hub are one commit each, with everything that loading needs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import Trainer
from transformers.utils import logging

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.hub import hub_errors, push_folder, read_stored_card, warn_of_visibility
from optimum_qala.models.hub_card import CARD_NAME, add_metadata, card_writer


__all__ = ["HubTrainer"]

logger = logging.get_logger(__name__)

NOT_PUSHED = ("_*", "checkpoint-*")  # as in transformers
RECORD_NAME = "training.json"  # in the output folder, says how the model was trained
# In a card that transformers' Trainer made, which nobody has edited: it says less than the one of what was measured.
DRAFT = "<!-- This model card has been generated automatically according to the information the Trainer had access to."
# Arguments of transformers' `create_model_card` that are metadata, and the names of these.
METADATA = {
    "language": "language",
    "license": "license",
    "finetuned_from": "base_model",
    "dataset_tags": "datasets",
}
LEFT_OUT = ("model_name", "tasks", "dataset", "dataset_args")  # and those that are not


class HubTrainer(Trainer):
    """Trainer that makes the branch it pushes to, and says in one line what the Hub refused.

    Raises:
        HubError: If `push_to_hub` is set and the Hub refuses the token or does not answer.
    """

    def init_hf_repo(self, token: str | None = None) -> None:
        """Make the repository, and the branch `hub_revision`; take over what was changed in the card on the Hub.

        Args:
            token: Access token; `hub_token` by default.
        """
        revision = self.args.hub_revision
        with hub_errors(self.args.hub_model_id or Path(self.args.output_dir).name, revision, pushes=True):
            super().init_hf_repo(token)
            if not self.is_world_process_zero():
                return
            api, repo_id = HfApi(token=token or self.args.hub_token), str(self.hub_model_id)
            warn_of_visibility(api, repo_id, self.args.hub_private_repo)
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        # Pushes of checkpoints upload the card of an earlier training as it is.
        own = self._own_card()
        if own and (stored := read_stored_card(repo_id, revision, token or self.args.hub_token)):
            self._write_card(card_writer().sign(card_writer().merge(stored, own, repo_id)))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        remote_code: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Save model, tokenizer and arguments to `output_dir` and upload them in one commit, with a model card.

        Args:
            commit_message: Message of the commit.
            blocking: Wait for the upload; otherwise a `Future` is returned.
            token: Access token; `hub_token` by default.
            revision: Branch, made if it does not exist; `hub_revision` by default.
            remote_code: Push the code of the model along, as `save_pretrained` does.
            kwargs: Arguments of `create_model_card`, such as `tags`.

        Returns:
            The commit, its `Future`, or None in a process that is not the first.

        Raises:
            ConfigurationError: If an argument is unknown, or the repository holds another back end's model.
            DataError: If a file beside the model that the card is made of is damaged, or of another model.
            HubError: If the Hub refuses the token, does not answer or breaks off. Nothing half-done stays there.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token)
        if unknown := sorted(kwargs.keys() - {"tags", *METADATA, *LEFT_OUT}):
            raise ConfigurationError(f"push_to_hub of {type(self).__name__} has no argument {unknown[0]!r}")
        if remote_code:
            self.accelerator.unwrap_model(self.model).keep_code()
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
        revision = revision or self.args.hub_revision
        existing = None if self._own_card() else read_stored_card(repo_id, revision, token)
        if self.state.global_step and not Path(self.args.output_dir, RECORD_NAME).is_file():
            self.save_state()  # which the card is made of then
        self.create_model_card(tags=tags, existing=existing, **kwargs)
        self._finish_current_push()
        push = partial(
            push_folder,
            Path(self.args.output_dir),
            repo_id,
            commit_message=commit_message or "End of training",
            token=token,
            revision=revision,
            ignore_patterns=NOT_PUSHED,
        )
        return push() if blocking else HfApi(token=token).run_as_future(push)

    def create_model_card(
        self, *, tags: str | Sequence[str] | None = None, existing: str | None = None, **kwargs: Any
    ) -> None:
        """Write the card of `output_dir`, as `write_model_card` does, keeping the text of one that is there.

        Args:
            tags: Tags to add.
            existing: A card to keep the text of where `output_dir` has none, for example that of the repository.
            kwargs: `language`, `license`, `finetuned_from` and `dataset_tags` of transformers' Trainer, as metadata.
                The card says by itself what the others of its arguments do; they are left out with a warning.

        Raises:
            CheckpointError: If `output_dir` holds no QuaLA-MiniLM.
            DataError: If a file beside the model is damaged, or of another model.
        """
        if not self.is_world_process_zero():
            return
        if left_out := [name for name in LEFT_OUT if kwargs.pop(name, None) is not None]:
            logger.warning(
                f"The model card does not take {', '.join(left_out)}: it says what it was made of by itself"
            )
        metadata = {METADATA[name]: value for name, value in kwargs.items()}
        if isinstance(metadata.get("datasets"), str):
            metadata["datasets"] = [metadata["datasets"]]
        card = self._own_card() or _without_draft(existing or "")
        card = add_metadata(card, [tags] if isinstance(tags, str) else tags or (), **metadata)
        folder = Path(self.args.output_dir)
        self._write_card(card_writer().write(folder, str(self.hub_model_id or folder.name), card))

    def _own_card(self) -> str:
        """Return the card in `output_dir`, "" if there is none but a draft."""
        file = Path(self.args.output_dir, CARD_NAME)
        return _without_draft(file.read_text(encoding="utf-8")) if file.is_file() else ""

    def _write_card(self, card: str) -> None:
        Path(self.args.output_dir, CARD_NAME).write_text(card, encoding="utf-8")

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


def _without_draft(card: str) -> str:
    return "" if DRAFT in card else card
