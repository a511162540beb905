//! Starters for real services: each test that breaks a service starts its own instance, in a folder of its own.

pub(crate) mod database;
pub(crate) mod docker;
pub(crate) mod elasticsearch;
pub(crate) mod gunicorn;
pub(crate) mod hostile;
pub(crate) mod memcached;
pub(crate) mod network;
pub(crate) mod nginx;
pub(crate) mod nodes;
pub(crate) mod process;
pub(crate) mod proctor;
pub(crate) mod rabbitmq;
pub(crate) mod site;
pub(crate) mod smtp;
pub(crate) mod systemd;
pub(crate) mod tmpfs;
pub(crate) mod tunnel;
pub(crate) mod watched;
pub(crate) mod whole;
