# rqmr in a container: one worker, unless another command is given.
#   docker build -t rqmr .        with what jobs import:  --build-arg PACKAGES="numpy pandas"
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY rqmr rqmr
COPY jobs jobs
ARG PACKAGES=""
RUN python -m venv /opt/rqmr && /opt/rqmr/bin/pip install --no-cache-dir . $PACKAGES

FROM python:3.13-slim
# By number, so that Kubernetes can see that it isn't root.
RUN useradd --uid 10001 --create-home rqmr
COPY --from=build /opt/rqmr /opt/rqmr
# For the demonstrations.
COPY input /srv/rqmr/input
ENV PATH=/opt/rqmr/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /srv/rqmr
CMD ["rqmr", "worker", "-n", "1"]
