"""Each scan direction against its share of the attention, teacher-forced."""

directional_mixer_matching = dict(type='transmamba.DirectionalMixerMatching')
