"""Prepare a store, and probe that it honours conditional writes."""

from __future__ import annotations

import click

from tools.cli_context import Context, verb


@click.command()
@click.option("--create-bucket", is_flag=True, help="Make the S3 bucket if there is none.")
@verb
def command(context: Context, create_bucket: bool) -> None:
    """Prepare a store, and probe that it honours conditional writes.

    \b
    boxlink init --store file:///srv/store
    boxlink init --store s3://bucket/prefix --create-bucket

    A second run probes again, and changes nothing.
    """
    import contextlib
    import json

    from synclib.clock import SystemClock, SystemEntropy
    from synclib.errors import Conflict, Missing
    from synclib.lazy.dataset import STORE_KEY
    from synclib.store.open import prepare_store
    from synclib.store.probe import probe_conditional_writes
    from tools.cli_engine import open_host
    from tools.store_conditions import note_conditions

    prepare_store(context.url, context.s3_settings(), create_bucket=create_bucket)
    store = context.open_store()
    # Also of one that is prepared: its objects may have been brought to a server that does not honour conditions.
    probe_conditional_writes(store, SystemClock(), SystemEntropy())
    note_conditions(open_host(context), context.url, context.s3_settings()["endpoint"])
    is_new = False
    try:
        store.get(STORE_KEY, size_max=1 << 16)
    except Missing:
        # If another init is there first, the store is ready all the same.
        with contextlib.suppress(Conflict):
            store.put(STORE_KEY, json.dumps({"v": 1}).encode(), if_absent=True)
            is_new = True
    context.emit({"store": context.url, "is_new": is_new}, f"{context.url} is {'ready' if is_new else 'ready already'}")
