# SPDX-License-Identifier: Apache-2.0
"""LeRobot v2.1 → v3.0, out of place: written beside the target, verified, compared with the source, renamed.

Differs from LeRobot 0.4.4's converter where that is wrong: the episode that
opens a new data file is recorded with that file's number, not the one before.
Videos that cannot stand in one file (another codec, size or header) open the
next instead of being joined into one that does not decode.
"""

from __future__ import annotations

from pathlib import Path

from vla_edge.errors import CheckFailed, DatasetError
from vla_edge.files import new_folder
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.compare_data import compare_datasets
from vla_edge.lerobot_data.editing.rewrite import DEFAULT_SIZES, FileSizes, Part, Progress, write_episodes
from vla_edge.lerobot_data.layout import Info
from vla_edge.lerobot_data.meta import read_episodes
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.lerobot_data.verification.verify import verify_dataset


def convert_dataset(
    source: Path,
    target: Path,
    sizes: FileSizes = DEFAULT_SIZES,
    progress: Progress | None = None,
    tolerance_s: float = TOLERANCE_S,
) -> Info:
    """Write the dataset `source`, v2.0 or v2.1, as v3.0 to `target`, which must not exist. Returns the new info.

    The source is only read. Statistics that it lacks are computed on the way (quantiles of numbers, everything of a
    feature or an episode without any); what it has stays as it is. Raises DatasetError for a
    source that is of another version or damaged, CheckFailed when the result does
    not pass verification; either way nothing is left at the target.
    """
    info = layout.read_info(source)
    if info.version == layout.V30:
        raise DatasetError(f"{source} is {info.version} already; there is nothing to convert")
    if source.resolve() in target.resolve().parents:
        raise DatasetError(f"{target} lies inside the source {source}; choose a folder outside")
    if not read_episodes(source, info):
        raise DatasetError(f"{source / layout.V21_EPISODES_FILE} lists no episode; there is nothing to convert")
    with new_folder(target, DatasetError) as folder:
        with open_dataset(source, tolerance_s=tolerance_s) as dataset:
            tasks = list(dict.fromkeys(dataset.tasks.values()))
            write_episodes([Part(dataset, dataset.episodes)], tasks, folder, sizes, progress)
        report = verify_dataset(folder, tolerance_s=tolerance_s)
        if not report.passed:
            advice = "the source may be damaged, run `vla-data verify` on it, which names the remedy"
            if report.first_problem.startswith("statistics: "):
                advice = f"what it keeps is not of its numbers, write it anew with `vla-data stats {source} --write`"
            raise CheckFailed(f"the conversion of {source} does not verify: {report.first_problem}; {advice}")
        differences = compare_datasets(source, folder, completed=True, tolerance_s=tolerance_s)
        if differences:
            raise CheckFailed(f"the conversion of {source} differs from it: {differences[0]}; nothing was written")
    return layout.read_info(target)
