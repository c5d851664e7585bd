from __future__ import annotations

import logging
from contextlib import ExitStack

import pytest

from optimum_qala.quantization.silence import Silence


@pytest.mark.parametrize("was_disabled", [False, True])
def test_logger_is_as_before_when_the_last_is_out(was_disabled):
    """Two quantizations that overlap, neither within the other."""
    logger, silence = logging.getLogger("tests.silence"), Silence("tests.silence")
    logger.disabled = was_disabled
    first, second = ExitStack(), ExitStack()
    first.enter_context(silence)
    second.enter_context(silence)
    assert logger.disabled
    first.close()
    assert logger.disabled
    second.close()
    assert logger.disabled is was_disabled
    with pytest.raises(KeyboardInterrupt), silence:
        raise KeyboardInterrupt
    assert logger.disabled is was_disabled
