"""Learning on one machine: models as flat vectors, local training, data and how it is dealt to clients.

Pure functions over tensors; nothing here knows of nodes, messages or the event loop. Import the modules by name:
importing this package alone loads no torch.
"""
