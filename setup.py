"""What setup.cfg cannot express: the folder configs/ is installed as train/configs/."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["preprocess*", "train*"]), "train.configs"],
    package_dir={"train.configs": "configs"},
)
