"""`fastvlm-onnx cache`."""

from datetime import datetime

import click


@click.command()
@click.option("--clear", is_flag=True, help="Delete all compiled graphs.")
def cache(clear: bool) -> None:
    """Show the compiled graphs that providers keep, or delete them.

    OpenVINO's plugin and CoreML compile a graph when a package is first opened. The result is kept
    for the next start. Graphs that were not used for the longest time are deleted beyond
    $FASTVLM_ONNX_CACHE_MB megabytes, 2000 by default; 0 keeps no graphs. The folder also remembers
    which weights were checked; --clear makes the next start read them again.
    """
    from fastvlm_onnx.runtime.ort import compiled_cache

    limit = compiled_cache.limit_bytes()
    folder = compiled_cache.compiled_folder()
    if clear:
        deleted = compiled_cache.clear()
        click.echo(f"deleted {deleted / 1e6:,.1f} MB in {folder.parent}")
        return
    entries = compiled_cache.entries()
    total = sum(entry.size_bytes for entry in entries)
    click.echo(f"{folder}: {total / 1e6:,.1f} MB in {len(entries)} compiled graphs, ", nl=False)
    click.echo(f"of {limit / 1e6:,.0f} MB at most")
    for entry in entries:
        used = f"{datetime.fromtimestamp(entry.last_used):%Y-%m-%d %H:%M}"
        record = entry.record
        text = f"{record.graph} for {record.provider} {record.version}" if record else "unfinished"
        click.echo(f"{entry.size_bytes / 1e6:10,.1f} MB  {used}  {text}")
