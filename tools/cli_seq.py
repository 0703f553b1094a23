"""A seq as people name it: by its number or by a tag."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from synclib.core.names import check_tag
from synclib.errors import Invalid

if TYPE_CHECKING:
    from synclib.lazy.dataset import Dataset


class SeqType(click.ParamType):  # type: ignore[type-arg]
    """A seq by its number, or by a tag: what :func:`seq_of` takes."""

    name = "seq"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text.isascii() and text.isdigit() and int(text) > 0:
            return text
        try:
            check_tag(text)
        except Invalid:
            self.fail(f"{text!r} is neither a seq (1, 2, ...) nor a tag", param, ctx)
        return text


SEQ = SeqType()


def seq_of(dataset: Dataset, text: str | None) -> int | None:
    """The seq that a number or a tag names; Missing for a tag that there is not."""
    if text is None or text.isdigit():
        return None if text is None else int(text)
    from synclib.engine.tags import read_tag

    return read_tag(dataset, text).seq
