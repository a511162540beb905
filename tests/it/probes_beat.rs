//! The probe beat against a real celery beat, a worker and a RabbitMQ.
