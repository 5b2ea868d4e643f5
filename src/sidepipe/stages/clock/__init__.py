"""Stage `clock`: when a training starts to memorize, by its loss, plain and refined samples."""
