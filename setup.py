# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Package transmamba_mm.

The CPU kernels (``transmamba_mm/ops/native``) are compiled if there is a C++
compiler; the package installs without one as well.

Beside the modules, the package holds ``transmamba_mm/.mim`` with the
configs, the tools and the model index, where MIM and mmpretrain's
``get_model`` look for them. In an editable installation these are links to
the files of the repository.
"""

import importlib.util
import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')
EXTRAS = (
    'video',
    'vqa',
    'lmms-eval',
    'demo',
    'triton',
    'mamba',
    'energy',
    'docs',
    'tests',
)


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


def read_native_build():
    """Return the module that compiles the kernels, without the package."""
    path = ROOT / 'transmamba_mm' / 'ops' / 'native' / 'build.py'
    spec = importlib.util.spec_from_file_location('native_build', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


native = read_native_build()


def kernels(parent):
    """Return the file of the compiled kernels below a folder."""
    return Path(parent) / 'transmamba_mm' / 'ops' / 'native' / native.LIBRARY


class Build(build_py):
    """Build the modules, the kernels, and ``.mim`` beside them."""

    def run(self):
        """Copy into the build, or link into the source tree if editable."""
        super().run()
        parent = ROOT if self.editable_mode else Path(self.build_lib)
        try:
            native.build(kernels(parent))
        except (native.BuildError, OSError) as error:
            kernels(parent).unlink(missing_ok=True)
            print(f'The CPU kernels are left out: {error}')
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


class Wheel(bdist_wheel):
    """A wheel for one platform but all versions of Python, or for all."""

    def get_tag(self):
        """Return the tags of Python, ABI and platform."""
        build = self.get_finalized_command('build_py')
        if not kernels(build.build_lib).exists():
            return super().get_tag()
        self.root_is_pure = False
        return ('py3', 'none', super().get_tag()[2])


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
    entry_points={
        'lmms_eval.models': [
            'trans_llava = transmamba_mm.apis.lmms_eval:MANIFEST'
        ],
    },
    cmdclass={'bdist_wheel': Wheel, 'build_py': Build},
    zip_safe=False,
)
