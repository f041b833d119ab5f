"""What a user would run instead, written as well as a competent one would: row 8.

Aquiles-Image (PyPI ``aquiles-image`` 0.8.3) is not among them, as it cannot serve the bundled model on a processor. Its
automatic pipeline, which takes any folder, and its Z-Image pipeline, which takes the hub's ids, are both made in
``start()`` under ``if torch.cuda.is_available()``, with ``device_map="cuda"``. Comparing with it needs a GPU.
"""
