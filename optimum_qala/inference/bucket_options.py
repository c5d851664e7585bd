"""Which buckets there are: the options of running a graph in static copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimum_qala._checks import check_unchanged
from optimum_qala.errors import ConfigurationError
from optimum_qala.inference.graph import THREADS_KEY


__all__ = ["HINTS", "BucketOptions", "padding_multiple"]

HINTS = ("latency", "throughput")
# A batch that is at least this full is filled up with rows that nobody asked for; an emptier one is cut into smaller
# batches.
FILL_SHARE = 0.75
_MULTIPLE_OF = "multiple of "
_ANY_SHAPE = "on a model of Intel Neural Compressor, whose one graph runs any shape; leave it out"


@dataclass(frozen=True)
class BucketOptions:
    """How sequences are put into buckets, and how many compiled graphs are kept.

    Args:
        length_multiple: Sequences are padded to the next multiple of this. A larger one compiles fewer graphs and pads
            more.
        longest_bucket: Longest sequence in tokens; as many as the model has positions if None.
        batch_sizes: Rows of the graphs for calls that do not fill a bulk batch.
        batch_tokens: Tokens of a bulk batch: its graph has `batch_tokens // length` rows, so that long sequences come
            in smaller batches.
        max_graphs: Compiled graphs that are kept. Beyond that the one that was not used for the longest time is
            dropped, and compiled again when it is needed again.
        performance_hint: "latency" gives all threads to one batch; "throughput" runs several batches side by side, on
            fewer threads each.
        cache_dir: Folder in which OpenVINO keeps what it compiled, for the next process; none if None.
        threads: Threads of inference; as many as OpenVINO chooses if None.

    Raises:
        ConfigurationError: If a value is not legal.
    """

    length_multiple: int = 32
    longest_bucket: int | None = None
    batch_sizes: tuple[int, ...] = (1,)
    batch_tokens: int = 2048
    max_graphs: int = 32
    performance_hint: str = "latency"
    cache_dir: str | Path | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.batch_sizes, int):
            raise ConfigurationError(f"batch_sizes {self.batch_sizes!r} is not a list; write ({self.batch_sizes},)")
        object.__setattr__(self, "batch_sizes", tuple(self.batch_sizes))
        if not self.batch_sizes:
            raise ConfigurationError("batch_sizes is empty; give at least one, for example 1")
        named = [("batch_sizes", size) for size in self.batch_sizes]
        named += [(name, getattr(self, name)) for name in ("length_multiple", "batch_tokens", "max_graphs")]
        optional = [(name, getattr(self, name)) for name in ("longest_bucket", "threads")]
        for name, value in (*named, *((name, value) for name, value in optional if value is not None)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} {value!r} is not a positive integer")
        if self.performance_hint not in HINTS:
            raise ConfigurationError(f"performance_hint {self.performance_hint!r} is not one of {list(HINTS)}")
        if self.cache_dir is not None and Path(self.cache_dir).is_file():
            raise ConfigurationError(f"cache_dir {self.cache_dir} is a file; name a folder, which may not exist yet")

    @classmethod
    def parse(cls, value: BucketOptions | bool | None) -> BucketOptions | None:
        """Read an argument that switches buckets on.

        Args:
            value: Options; True for the defaults; False or None for no buckets.

        Returns:
            The options, or None.

        Raises:
            ConfigurationError: If it is something else.
        """
        if value is None or isinstance(value, bool):
            return cls() if value else None
        if not isinstance(value, cls):
            raise ConfigurationError(f"buckets {value!r} are neither BucketOptions nor True or False")
        return value

    def up_to(self, positions: int | None) -> BucketOptions:
        """Return the options without buckets that a model is too short for.

        Args:
            positions: Tokens that the model can take; any number if None.
        """
        longest = min((length for length in (self.longest_bucket, positions) if length), default=None)
        return replace(self, longest_bucket=longest)

    def check_any_shape(self) -> None:
        """Raise if an option is set that is about graphs of fixed shape, for a graph that runs any shape.

        Raises:
            ConfigurationError: If so.
        """
        check_unchanged(self, ("batch_sizes", "max_graphs", "performance_hint"), _ANY_SHAPE)
        check_unchanged(self, ("cache_dir",), f"{_ANY_SHAPE}; compile() takes one for what it makes")
        check_unchanged(self, ("threads",), f"{_ANY_SHAPE}; call torch.set_num_threads")

    @property
    def padding(self) -> str:
        """How sequences are padded, in words."""
        return f"{_MULTIPLE_OF}{self.length_multiple}"

    def bucket(self, length: int) -> int:
        """Choose the bucket of a sequence.

        Args:
            length: Its tokens.

        Returns:
            Tokens that it is padded to.

        Raises:
            ConfigurationError: If it is longer than the longest bucket.
        """
        if self.longest_bucket is not None and length > self.longest_bucket:
            raise ConfigurationError(
                f"a sequence of {length} tokens does not fit the longest bucket of {self.longest_bucket}; cut it into "
                "shorter windows, or raise longest_bucket up to the positions of the model"
            )
        padded = -(-max(length, 1) // self.length_multiple) * self.length_multiple
        return padded if self.longest_bucket is None else min(padded, self.longest_bucket)

    def buckets(self) -> list[int]:
        """List all buckets, shortest first.

        Raises:
            ConfigurationError: If there is no longest one.
        """
        if self.longest_bucket is None:
            raise ConfigurationError("longest_bucket is None, so there is no list of all buckets; name the lengths")
        shorter = range(self.length_multiple, self.longest_bucket, self.length_multiple)
        return [*shorter, self.longest_bucket]

    def rows(self, bucket: int) -> tuple[int, ...]:
        """List the batch sizes of a bucket, largest first: that of a bulk batch, and those below it."""
        sizes = [max(self.batch_tokens // bucket, min(self.batch_sizes))]
        for size in sorted(set(self.batch_sizes), reverse=True):
            if size < FILL_SHARE * sizes[-1]:  # as many rows or more fill the larger batch
                sizes.append(size)
        return tuple(sizes)

    def split(self, num_rows: int, bucket: int) -> list[int]:
        """Split rows into batches.

        Args:
            num_rows: How many.
            bucket: Their bucket.

        Returns:
            Batch sizes, largest first. The last one may be more than what is left.
        """
        sizes, chosen = self.rows(bucket), []
        for size in sizes:
            full, num_rows = divmod(num_rows, size)
            chosen += [size] * full
            if num_rows >= FILL_SHARE * size:
                return [*chosen, size]
        return [*chosen, sizes[-1]] if num_rows else chosen

    def split_exactly(self, num_rows: int, bucket: int) -> list[int]:
        """Split rows into batches where any number of rows can run.

        Args:
            num_rows: How many.
            bucket: Their bucket.

        Returns:
            Batch sizes, largest first, of as many rows together.
        """
        most = self.rows(bucket)[0]
        full, rest = divmod(num_rows, most)
        return [most] * full + [rest] * (rest > 0)

    def fill(self, lengths: Sequence[int], num_streams: int = 1) -> int:
        """Choose how many of the sequences that wait run in one call.

        Args:
            lengths: Their tokens, longest first.
            num_streams: Bulk batches that run side by side.

        Returns:
            How many of the first ones: those of one bucket, until they fill its bulk batches.
        """
        bucket = self.bucket(lengths[0])
        return sum(self.bucket(length) == bucket for length in lengths[: self.rows(bucket)[0] * num_streams])

    def runtime_settings(self, ov_config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write the options as OpenVINO's settings.

        Args:
            ov_config: Other settings of OpenVINO.

        Returns:
            All of them.

        Raises:
            ConfigurationError: If `ov_config` says something else than the options.
        """
        settings: dict[str, Any] = {"PERFORMANCE_HINT": self.performance_hint.upper()}
        if self.cache_dir is not None:
            settings["CACHE_DIR"] = str(self.cache_dir)
        if self.threads is not None:
            settings[THREADS_KEY] = self.threads
        given = dict(ov_config or {})
        for name, value in settings.items():
            if str(given.get(name, value)) != str(value):
                raise ConfigurationError(f"{name} {given[name]!r} in ov_config contradicts {value!r} of the buckets")
        return given | settings


def padding_multiple(padding: str | None) -> int | None:
    """Read back what `BucketOptions.padding` says.

    Args:
        padding: How something that was measured was padded, in words.

    Returns:
        The `length_multiple` of its buckets; None if it says something else.
    """
    number = (padding or "").removeprefix(_MULTIPLE_OF)
    return int(number) if number != padding and number.isdecimal() else None
