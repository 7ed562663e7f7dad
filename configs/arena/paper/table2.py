"""The paper's Table 2 at full size: CIFAR-100 and ImageNet-100, 224 pixels.

Every student alone, with the paper's stage two, and with the default one; 300
epochs, a GPU for each cell. Beside what the paper prints::

    python tools/arena.py run configs/arena/paper/table2.py \
        --work-dir work_dirs/table2
    python tools/arena.py paper work_dirs/table2

We have not run it to completion.
"""

title = 'Table 2: students alone and with TransMamba, 300 epochs'
seeds = [0, 1, 2]
axes = dict(data={'cifar100': {}, 'imagenet100': {}})
# Learning rates are of 512 images a step.
options = {'auto_scale_lr.enable': True}

_teachers = {
    'deit-tiny': 'DeiT-T',
    'deit-small': 'DeiT-S',
    'deit-base': 'DeiT-B',
}
# Name in configs: folder, rest of the name, teacher, row of the table.
_students = {
    'pmamba-tiny': ('plain_mamba/pmamba-tiny', 'deit-tiny', 'PMamba-T'),
    'pmamba-small': ('plain_mamba/pmamba-small', 'deit-small', 'PMamba-S'),
    'pmamba-base': ('plain_mamba/pmamba-base', 'deit-base', 'PMamba-B'),
    'vmamba-tiny': ('vmamba/vmamba-transmamba-tiny', 'deit-base', 'VMamba'),
    'vim-tiny': ('vim/vim-tiny', 'deit-tiny', 'ViM-T'),
    'vim-small': ('vim/vim-small', 'deit-small', 'ViM-S'),
}
_distilled = 'configs/transmamba/transmamba_{}_{}_8xb64-300e_{{data}}{}.py'

contestants = [
    *(
        dict(
            name=name,
            config=f'configs/transmamba/{name}_8xb64-50e_{{data}}.py',
            seeds=[0],
        )
        for name in _teachers
    ),
    *(
        dict(name=name, config=f'configs/{path}_8xb64-300e_{{data}}.py')
        for name, (path, _, _) in _students.items()
    ),
    *(
        dict(
            name=f'{name}_{recipe}',
            config=_distilled.format(teacher, name, suffix),
            needs={'model.teacher_ckpt': teacher},
        )
        for name, (_, teacher, _) in _students.items()
        for recipe, suffix in (('paper', '_paper'), ('default', ''))
    ),
]
_data = {'cifar100': 'CIFAR-100', 'imagenet100': 'ImageNet-100'}
paper = {
    f'{name}{recipe}-{data}': (f'Table 2, {printed}', f'{row}{suffix}')
    for data, printed in _data.items()
    for name, (_, _, row) in _students.items()
    for recipe, suffix in (
        ('', ''),
        ('_paper', ' + TransMamba'),
        ('_default', ' + TransMamba'),
    )
}
paper.update(
    {
        f'{name}-{data}': (f'Table 2, {printed}', row)
        for data, printed in _data.items()
        for name, row in _teachers.items()
    }
)
pairs = [
    (f'{name}_{recipe}-{data}', f'{name}-{data}')
    for data in _data
    for name in _students
    for recipe in ('paper', 'default')
]
