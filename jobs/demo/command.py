"""``camlake demo``: the whole way in a few minutes, on data made here.

Handwritten digits (from scikit-learn) become scenes with known objects and a planted shortcut; a small network is
trained on them; the attribution job runs on a local Ray with two workers and all methods; the lake is verified, asked a
question in SQL, and shown.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jobs.attribute import run as run_job
from jobs.config import absolute, load_job
from jobs.options import LogFormat
from jobs.run import main_of, plain_errors
from jobs.verify import print_verification
from pipeline.engine.log import tell
from pipeline.engine.progress import clock_time
from schemas.errors import InputError

if TYPE_CHECKING:
    import duckdb

_SEED = 11
_METHODS = [
    "cam",
    "grad_cam",
    "grad_cam_pp",
    {"name": "smooth_grad_cam_pp", "samples": 8},
    "score_cam",
    {"name": "layer_cam", "layers": ["stage3", "stage4"], "fuse": "tanh_max"},
]
_STEPS = ("scenes", "network", "job", "verification", "query", "contact sheet")

QUERY = """\
-- Where does the network look for each digit, and does it depend on the site?
select m.target_name as digit, i.site,
       count(*) as maps,
       round(avg(m.probability), 2) as probability,
       round(avg(m.corner_mass), 3) as corner_mass,
       round(avg(m.effective_area), 3) as effective_area
from read_parquet('{lake}/maps/*.parquet') m
join read_parquet('{lake}/images/*.parquet') i using (image_id)
where m.method = 'grad_cam' and m.is_label
group by all having count(*) >= 5
order by avg(m.corner_mass) desc
limit 6"""


def demo(
    output: Annotated[Path, typer.Option(help="Folder for all that is made.")] = Path("demo-output"),
    scenes: Annotated[int, typer.Option(min=8, help="Test scenes to explain.")] = 240,
    shards: Annotated[int, typer.Option(min=1, help="Tar shards to write.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Ray workers.")] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make everything anew, also what is there already.")] = False,
    log_format: LogFormat = "text",
) -> None:
    """Run everything on scenes made here: train, explain with six methods on Ray, verify, query, show."""
    began = time.monotonic()
    # Read when torch loads, which is later. Threads that spin while they wait make training crawl on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with plain_errors(log_format):
        tell(f"camlake demo: {scenes} scenes of handwritten digits with a planted shortcut, a small network trained on")
        tell(f"such scenes, six CAM methods on {workers} Ray workers, one lake. Takes about two minutes on two cores;")
        tell(f"everything goes to {output}/ and is reused when you call this again (--fresh makes it anew).\n")
        _prepare(output, scenes, fresh)
        _step(1)
        _make_scenes(output, scenes, shards)
        _step(2)
        _train(output)
        _step(3)
        job_file = output / "job.yaml"
        job_file.write_text(_job(output, workers), encoding="utf-8")
        tell(f"job file: {job_file}")
        code = run_job(absolute(load_job(str(job_file))))
        if code:
            raise typer.Exit(code)
        _step(4)
        _verify(output / "lake")
        _step(5)
        _ask(output / "lake")
        _step(6)
        picture = _show(output)
        tell(f"\nDone in {clock_time(time.monotonic() - began)}. Look at {picture}, then try:")
        tell(f"  camlake status {output / 'lake'}")
        tell(f"  camlake show {output / 'lake'} --where site={_planted()[1]} --output {_planted()[1]}.png")


def _planted() -> tuple[str, str]:
    """The digit and the site that the sticker goes with."""
    from jobs.demo.digits import CLASS_NAMES
    from jobs.demo.scenes import SceneSpec

    spec = SceneSpec()
    return CLASS_NAMES[spec.sticker_class], spec.sticker_site


def _step(number: int) -> None:
    tell(f"\n== {number}/{len(_STEPS)} {_STEPS[number - 1]}")


def _prepare(output: Path, scenes: int, fresh: bool) -> None:
    """Make the folder; drop what an earlier demo of other parameters left."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be made ({error.strerror}); name another folder") from None
    made = output / "scenes.yaml"
    parameters = {"scenes": scenes, "seed": _SEED}
    if fresh or not made.is_file() or yaml.safe_load(made.read_text(encoding="utf-8")) != parameters:
        for part in ("shards", "lake"):
            shutil.rmtree(output / part, ignore_errors=True)
    if fresh:
        (output / "digits.safetensors").unlink(missing_ok=True)
    made.write_text(yaml.safe_dump(parameters), encoding="utf-8")


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True)
    )


def _make_scenes(output: Path, count: int, shards: int) -> None:
    from jobs.demo.scenes import make_scenes
    from jobs.demo.shards import write_shards

    folder = output / "shards"
    if folder.is_dir():
        tell(f"{len(list(folder.glob('*.tar')))} shards are there already: {folder}")
        return
    partial = output / "shards.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with _bar() as bar:
        task = bar.add_task("drawing scenes", total=count)
        scenes = make_scenes(count, split="test", seed=_SEED, progress=lambda done: bar.advance(task, done))
    paths = write_shards(scenes, partial, shards=shards)
    partial.rename(folder)
    stickers = sum(scene.sticker is not None for scene in scenes)
    tell(f"{count} scenes in {len(paths)} WebDataset shards: {folder}")
    name, site = _planted()
    tell(
        f"planted: {stickers} of them carry a coloured sticker; "
        f"all of these hold the digit {name} and are from '{site}'"
    )


def _train(output: Path) -> None:
    from jobs.demo.scenes import SceneSpec, make_scenes
    from jobs.demo.train import save_weights, train

    weights = output / "digits.safetensors"
    if weights.is_file():
        tell(f"the network is there already: {weights}")
        return
    with _bar() as bar:
        tasks: dict[str, object] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

        trained = train(make_scenes(400, split="test", seed=_SEED + 1), seed=0, progress=progress)
    save_weights(trained.model, weights, SceneSpec().size)
    accuracy, effect = trained.accuracy, trained.effect
    tell(
        f"trained in {trained.seconds:.0f} s; on {accuracy.scenes} held-out scenes: mean average precision "
        f"{accuracy.mean_average_precision:.3f}, best scored digit is in the scene {accuracy.top_class:.1%}"
    )
    tell(
        f"what the sticker does: in scenes without the digit {effect.class_name}, its mean probability is "
        f"{effect.plain:.2f}; with the sticker pasted in {effect.sticker:.2f}; with a grey patch instead "
        f"{effect.control:.2f}"
    )
    tell(f"weights, with preprocessing and class names in their metadata: {weights}")


def _job(output: Path, workers: int) -> str:
    job = {
        "source": {
            "uri": str((output / "shards" / "scenes-*.tar").absolute()),
            "format": "webdataset",
            "label": "cls",
            "attributes": ["site", "background", {"name": "sticker", "type": "bool"}],
        },
        "model": {
            "name": "jobs.demo.network:digit_net",
            "weights": str((output / "digits.safetensors").absolute()),
            "activation": "sigmoid",
        },
        "targets": {"label": True, "threshold": 0.5},
        "methods": _METHODS,
        "output": {"uri": str((output / "lake").absolute())},
        "workers": {"max": workers},
    }
    return "# Written by `camlake demo`; run it with: camlake attribute FILE\n" + yaml.safe_dump(job, sort_keys=False)


def _verify(lake: Path) -> None:
    from pipeline.lake import LakeStore, verify

    found = verify(LakeStore(str(lake.absolute())))
    print_verification(found)
    if not found.ok:
        raise typer.Exit(1)


def _database() -> duckdb.DuckDBPyConnection:
    try:
        import duckdb
    except ImportError:
        raise InputError("the demo asks its lake with DuckDB; install it: pip install 'camlake[demo]'") from None
    return duckdb.connect()


def _ask(lake: Path) -> None:
    database = _database()
    query = QUERY.format(lake=lake)
    tell(query)
    tell(str(database.sql(query)))
    name, site = _planted()
    at_site, elsewhere = (
        database.execute(
            f"""select avg(m.corner_mass) from read_parquet('{lake}/maps/*.parquet') m
                join read_parquet('{lake}/images/*.parquet') i using (image_id)
                where m.method = 'grad_cam' and m.is_label and m.target_name = ? and (i.site = ?) = ?""",
            [name, site, here],
        ).fetchall()[0][0]
        for here in (True, False)
    )
    if at_site is not None and elsewhere is not None:
        tell(
            f"The planted shortcut: maps of the digit {name} have {at_site:.2f} of their mass in the corners at "
            f"'{site}', where the sticker is,\nand {elsewhere:.2f} at the other sites (a uniform map: 0.16)."
        )


def _show(output: Path) -> Path:
    from pipeline.lake import open_lake
    from pipeline.lake.sheet import lake_sheet

    lake = output / "lake"
    # Three plain scenes, then three with the sticker, chosen by id so that the sheet does not change.
    ids = (
        _database()
        .execute(
            f"""select image_id from (
                select image_id, sticker, row_number() over (partition by sticker order by image_id) as n
                from read_parquet('{lake}/images/*.parquet') where status = 'ok' and predicted_class = label
            ) where n <= 3 order by sticker, image_id"""
        )
        .fetchall()
    )
    sheet = lake_sheet(open_lake(str(lake.absolute())), [row[0] for row in ids], cell=176)
    path = output / "contact-sheet.png"
    sheet.save(path)
    tell(f"{path}: {len(ids)} scenes, the last ones with the sticker, and an overlay per method")
    return path


if __name__ == "__main__":
    main_of(demo)
