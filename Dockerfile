# One target per service: gateway, preprocess, infer, postprocess. They differ in settings only, so
# that four images take the space of one.
ARG BASE=python:3.11-slim-bookworm

# The list alone, so that a change elsewhere in pyproject.toml does not install everything again.
FROM ${BASE} AS dependencies
COPY pyproject.toml /
RUN python -c "import tomllib; project = tomllib.load(open('/pyproject.toml', 'rb'))['project']; \
    print(*project['dependencies'], sep='\n')" >/requirements.txt

FROM ${BASE} AS libraries
# pip reads this variable; it stays out of the images, which copy only /opt/venv from here.
ARG PIP_INDEX_URL
# Without pip: what runs in production installs nothing.
RUN python -m venv --without-pip /opt/venv
COPY --from=dependencies /requirements.txt /
RUN pip --python /opt/venv/bin/python install --no-cache-dir -r /requirements.txt

FROM libraries AS program
COPY . /src
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --prefix /opt/program /src

FROM ${BASE} AS service
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
# A tokenizer comes from the model repository, never from the network; advice stays out of the log.
ENV HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1
# Processes are what uses the cores; libraries' own threads would only fight over them.
ENV OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# From 1.31 on, ONNX Runtime reports its use to its makers unless told not to.
ENV ORT_DISABLE_TELEMETRY=1
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin mesh
COPY --from=libraries /opt/venv /opt/venv
# A layer of its own: a change of ours is 2 MB to push and pull, not all libraries again.
COPY --from=program /opt/program /opt/venv
# A number, for orchestrators that must see that it is not root.
USER 10001:10001

FROM service AS gateway
USER 0
RUN install --directory --owner 10001 --group 10001 /state
USER 10001:10001
ENV GATEWAY_BIND=0.0.0.0:8001 GATEWAY_HTTP=0.0.0.0:8000 GATEWAY_METRICS_PORT=8002 \
    GATEWAY_MODELS=/models
EXPOSE 8000 8001 8002
ENTRYPOINT ["python", "-m", "gateway"]

FROM service AS preprocess
ENV PREPROCESS_BIND=0.0.0.0:8011 PREPROCESS_MODELS=/models
EXPOSE 8011
ENTRYPOINT ["python", "-m", "preprocess_svc"]

FROM service AS infer
ENV INFER_BIND=0.0.0.0:8012 INFER_MODELS=/models
EXPOSE 8012
ENTRYPOINT ["python", "-m", "infer_svc"]

FROM service AS postprocess
ENV POSTPROCESS_BIND=0.0.0.0:8013 POSTPROCESS_MODELS=/models
EXPOSE 8013
ENTRYPOINT ["python", "-m", "postprocess_svc"]

# infer on a GPU, from here on. These stages are the last: some builders make all before a target.
FROM libraries AS gpu-libraries
# An extra of pyproject.toml: tensorrt or tensorrt-rtx.
ARG FLAVOUR=tensorrt
# Exact versions of some of its packages, as "tensorrt==10.16.1.11".
ARG PINS=
# PyCUDA is compiled for it; the driver must run this one.
ARG CUDA=13.0
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml /
RUN python -c "import tomllib; project = tomllib.load(open('/pyproject.toml', 'rb'))['project']; \
    print(*project['optional-dependencies']['${FLAVOUR}'], sep='\n')" >/gpu.txt
# The headers of CUDA, from NVIDIA's wheels.
RUN pip install --no-cache-dir --target /cuda "nvidia-cuda-nvcc==${CUDA}.*" "nvidia-cuda-crt==${CUDA}.*" \
    "nvidia-cuda-runtime==${CUDA}.*" "nvidia-cuda-profiler-api==${CUDA}.*"
# The driver is on machines with a GPU only, so PyCUDA is linked to a library of its name. cuRAND is
# not used. What /opt/venv has is not installed again, so that the layer below is small.
RUN mkdir /stub && echo | gcc -shared -x c - -Wl,-soname,libcuda.so.1 -o /stub/libcuda.so && \
    echo 'CUDA_ENABLE_CURAND = False' >~/.aksetup-defaults.py && \
    PATH=/cuda/nvidia/cu13/bin:$PATH LIBRARY_PATH=/stub LDFLAGS=-Wl,--no-as-needed \
    pip --python /opt/venv/bin/python install --no-cache-dir --prefix /opt/gpu \
    -r /requirements.txt -r /gpu.txt ${PINS}

FROM infer AS infer-gpu
USER 0
RUN install --directory --owner 10001 --group 10001 /engines
USER 10001:10001
COPY --from=gpu-libraries /opt/gpu /opt/venv
ENV INFER_ENGINE_CACHE=/engines NVIDIA_DRIVER_CAPABILITIES=compute,utility
