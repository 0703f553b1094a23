"""Name a seq."""

from __future__ import annotations

import click

from tools.cli_context import Context, node_option, verb
from tools.cli_seq import SEQ, seq_of


@click.command()
@click.argument("dataset")
@click.argument("name", required=False)
@click.argument("seq", required=False, type=SEQ)
@click.option("--delete", is_flag=True, help="Take the tag away.")
@node_option
@verb
def command(context: Context, dataset: str, name: str | None, seq: str | None, delete: bool) -> None:
    """Give SEQ of DATASET (by default the newest) a name that retention spares; without NAME list the tags.

    \b
    boxlink tag covers golden 42
    boxlink tag covers
    boxlink tag covers golden --delete
    """
    from synclib.core.names import check_tag
    from synclib.engine.tags import delete_tag, set_tag, tags
    from synclib.errors import Invalid
    from tools.cli_engine import open_dataset, open_host, time_text

    if name is None and delete:
        raise Invalid("which tag is to be deleted?", hint=f"boxlink tag {dataset} NAME --delete")
    opened = open_dataset(context, dataset)
    if name is None:
        found = tags(opened)
        listed = [
            {"name": key, "seq": tag.seq, "digest": tag.digest, "at": time_text(tag.at_ns)}
            for key, tag in sorted(found.items())
        ]
        lines = [f"{row['name']}  seq {row['seq']}  digest {str(row['digest'])[:16]}  {row['at']}" for row in listed]
        context.emit({"dataset": dataset, "tags": listed}, "\n".join(lines) or f"{dataset} has no tags")
        return
    check_tag(name)
    if delete:
        gone = delete_tag(opened, name)
        seq_was, digest = (gone.seq, gone.digest) if gone is not None else (0, "")
        text = f"{dataset}: {name} was seq {seq_was}, digest {digest[:16]}" if gone else f"{dataset}: {name} is gone"
        context.emit({"dataset": dataset, "name": name, "seq": seq_was, "digest": digest, "deleted": True}, text)
        return
    before = tags(opened).get(name)
    tag = set_tag(opened, open_host(context), name, seq_of(opened, seq))
    if before is not None and before.seq != tag.seq:
        context.note(f"boxlink: {name} was seq {before.seq}, which it no longer spares")
    context.emit(
        {"dataset": dataset, "name": name, "seq": tag.seq, "digest": tag.digest, "deleted": False},
        f"{dataset}: {name} is seq {tag.seq}, digest {tag.digest[:16]}",
    )
