# Two images, as build targets: `docker build --target cpu -t folio .`, and `--target cuda` for NVIDIA GPUs.
# docs/serving.md says how to use them.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY setup.cfg setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY configs configs
COPY preprocess preprocess
COPY train train
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# What both images have: a user without rights, whose folder /work holds shards and runs.
FROM python:${PYTHON}-slim AS base
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 FOLIO_CACHE=/work/cache
RUN useradd --create-home --uid 1000 folio && install -d -o folio -g folio /work
COPY constraints.txt /opt/folio/constraints.txt
WORKDIR /work
VOLUME /work
EXPOSE 8000
# What `make demo` does.
CMD ["sh", "-c", "preprocess build --corpus synthetic && folio train demo && folio plot runs/demo"]

# The layer with PyTorch comes first, so that a change of Folio does not download it again.
FROM base AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --constraint /opt/folio/constraints.txt --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple torch
COPY --from=wheel /wheels /opt/folio/wheels
RUN pip install --constraint /opt/folio/constraints.txt --find-links /opt/folio/wheels 'folio-lm[offline,plot,huggingface,serve]'
USER 1000

# PyPI's PyTorch for Linux has the CUDA libraries; the driver comes from the host (`docker run --gpus all`).
FROM base AS cuda
RUN pip install --constraint /opt/folio/constraints.txt torch
COPY --from=wheel /wheels /opt/folio/wheels
RUN pip install --constraint /opt/folio/constraints.txt --find-links /opt/folio/wheels 'folio-lm[offline,plot,huggingface,serve]'
USER 1000
