-- At the first start of an empty Postgres: one database for each server.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
