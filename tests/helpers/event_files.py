"""A folder of events as TensorBoard reads it: without the points that a resumed run purged."""

import logging
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

KEEP_ALL = {"scalars": 0, "images": 0, "histograms": 0}


def read(folder: Path) -> Any:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every purge
    accumulator = EventAccumulator(str(folder), size_guidance=KEEP_ALL)
    accumulator.Reload()
    return accumulator


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars: tag -> [(epoch, value)]."""
    events = read(folder)
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def figures(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """The images and histograms: tag -> [(epoch, content)]."""
    events = read(folder)
    tags = events.Tags()
    images = {
        tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)]
        for tag in tags["images"]
    }
    histograms = {
        tag: [(e.step, e.histogram_value) for e in events.Histograms(tag)]
        for tag in tags["histograms"]
    }
    return images | histograms


def hparams(folder: Path) -> dict[str, Any]:
    """What the HParams tab shows: "experiment", "session_start_info" and "session_end_info"."""
    contents = read(folder).PluginTagToContent("hparams")
    return {
        tag.removeprefix("_hparams_/"): HParamsPluginData.FromString(content)
        for tag, content in contents.items()
    }
