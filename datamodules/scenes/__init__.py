"""The embedded data: scenes drawn by this repository, in the official formats of the data sets they stand in for."""

from datamodules.scenes.config import ScenesConfig
from datamodules.scenes.draw import Object, Scene, make_scene, render
from datamodules.scenes.language import captions
from datamodules.scenes.questions import Question, questions
from datamodules.scenes.write import write_scenes

__all__ = [
    "Object",
    "Question",
    "Scene",
    "ScenesConfig",
    "captions",
    "make_scene",
    "questions",
    "render",
    "write_scenes",
]
