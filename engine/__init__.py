"""How a run trains and tests.

program: command line to exit code      command_line, flags, settings, supervised_settings: what can be asked for
training: start, steps, checkpoints     episode_data, episode_calls: episodes to logits     view_calls: test views to scores
steps, devices, stopping, processes: the optimiser, the hardware, signals, the other processes of a job
row_store, feature_store: what is computed once and kept     class_text, recognisers: names of classes, networks from files
"""
