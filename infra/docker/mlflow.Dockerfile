# syntax=docker/dockerfile:1
# MLflow's server with what it needs for Postgres, S3 and passwords. Its version is the one that the stages speak to.
#
#   docker build -f infra/docker/mlflow.Dockerfile -t r1flow-mlflow .
FROM python:3.11.14-slim-bookworm
WORKDIR /src
COPY requirements.lock ./
# The lock pins mlflow, boto3 and what they bring; the three that only this server has are pinned here.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --disable-pip-version-check --constraint requirements.lock \
        mlflow boto3 "psycopg[binary]==3.3.9" Flask-WTF==1.3.0 WTForms==3.3.2 \
    && useradd --uid 1000 --create-home mlflow
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true
USER 1000:1000
WORKDIR /home/mlflow
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
