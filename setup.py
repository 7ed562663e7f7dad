# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Package transmamba_mm.

Beside the modules, the package holds ``transmamba_mm/.mim`` with the
configs, the tools and the model index, where MIM and mmpretrain's
``get_model`` look for them. In an editable installation these are links to
the files of the repository.
"""

import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')
EXTRAS = ('video', 'vqa', 'triton', 'mamba', 'docs', 'tests')


def read_requirements(name):
    """Return the lines of requirements/NAME.txt without the comments."""
    text = (ROOT / 'requirements' / f'{name}.txt').read_text()
    lines = (line.partition('#')[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def read_version():
    """Return the version without importing the package."""
    scope = {}
    exec((ROOT / 'transmamba_mm' / 'version.py').read_text(), scope)
    return scope['__version__']


class BuildWithMim(build_py):
    """Build the modules, and ``.mim`` beside them."""

    def run(self):
        """Copy into the build, or link into the source tree if editable."""
        super().run()
        parent = ROOT if self.editable_mode else Path(self.build_lib)
        target = parent / 'transmamba_mm' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM_CONTENT:
            source = ROOT / name
            if not source.exists():
                continue
            if self.editable_mode and try_to_link(source, target / name):
                continue
            copy(source, target / name)

    def get_source_files(self):
        """Leave ``.mim`` to MANIFEST.in: an sdist has the originals."""
        return [f for f in super().get_source_files() if '.mim' not in f]


def try_to_link(source, link):
    """Make a relative link; return False where that is not allowed."""
    try:
        link.symlink_to(os.path.relpath(source, link.parent))
    except OSError:
        return False
    return True


def copy(source, target):
    """Copy a file, or a folder without what Python caches in it."""
    if source.is_file():
        shutil.copy2(source, target)
    else:
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc')
        shutil.copytree(source, target, ignore=ignore)


setup(
    name='transmamba_mm',
    version=read_version(),
    description='Transfer knowledge from Transformers to Mamba, in OpenMMLab',
    long_description=(
        (ROOT / 'README.md').read_text(encoding='utf-8')
        if (ROOT / 'README.md').exists()
        else ''
    ),
    long_description_content_type='text/markdown',
    author='The transmamba_mm authors',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    keywords='computer vision, knowledge distillation, Mamba, OpenMMLab',
    packages=find_packages(include=['transmamba_mm', 'transmamba_mm.*']),
    include_package_data=True,
    python_requires='>=3.9',
    install_requires=read_requirements('runtime'),
    extras_require={name: read_requirements(name) for name in EXTRAS},
    cmdclass={'build_py': BuildWithMim},
    ext_modules=[],
    zip_safe=False,
)
