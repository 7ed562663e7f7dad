"""The loss in the code that TransMamba's authors released, not the paper's."""

transmamba_released = dict(type='transmamba.ReleasedTransMamba')
