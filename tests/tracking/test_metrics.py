"""Metrics of a training, as the file beside the artifact keeps them."""

from sidepipe.tracking import MetricsCSV


def test_metrics_are_appended_across_loggers_under_one_header(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsCSV(path).log_metrics({"loss": 0.5, "epoch": 0}, 0)
    MetricsCSV(path).log_metrics({"loss": 0.25, "val/loss": 1234567.0}, 9)
    assert path.read_text().splitlines() == [
        "step,metric,value",
        "1,loss,0.5",
        "10,loss,0.25",
        "10,val/loss,1.23457e+06",
    ]
    assert MetricsCSV(path).rows() == [
        *((1, "loss", 0.5), (10, "loss", 0.25), (10, "val/loss", 1234570.0)),
    ]


def test_a_file_that_is_not_there_has_no_rows(tmp_path):
    assert MetricsCSV(tmp_path / "metrics.csv").rows() == []


def test_a_half_written_last_line_is_dropped_before_a_run_resumes(tmp_path):
    metrics = MetricsCSV(tmp_path / "metrics.csv")
    metrics.drop_half_line()
    assert not metrics.path.exists()
    metrics.log_metrics({"loss": 0.5}, 0)
    whole = metrics.path.read_bytes()
    for half in (b"10", b"10,loss,0.2", b""):
        metrics.path.write_bytes(whole + half)
        metrics.drop_half_line()
        assert metrics.path.read_bytes() == whole
    assert metrics.rows() == [(1, "loss", 0.5)]
