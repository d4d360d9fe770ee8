from examples.vae.recording import MetricsCSV, read_metrics


def test_rows_are_on_disk_at_once_and_columns_may_come_later(tmp_path):
    metrics = MetricsCSV(tmp_path / "metrics.csv")
    metrics.log_metrics({"epoch": 0, "a": 0.1}, step=1)
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,a\n1,0,0.1\n"
    metrics.log_metrics({"epoch": 0, "b": 2.0}, step=2)
    metrics.log_metrics({"epoch": 1, "a": 0.3}, step=3)
    columns, rows = read_metrics(metrics.path)
    assert columns == ["step", "epoch", "a", "b"]
    assert [row["a"] for row in rows] == ["0.1", "", "0.3"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_keeps_earlier_rows_and_drops_what_it_will_write_again(tmp_path):
    path = tmp_path / "metrics.csv"
    for step in range(4):
        MetricsCSV(path).log_metrics({"a": step}, step=step)
    resumed = MetricsCSV(path)
    resumed.rewind(2)
    resumed.log_metrics({"a": 7}, step=2)
    assert [(row["step"], row["a"]) for row in read_metrics(path)[1]] == [("0", "0"), ("1", "1"), ("2", "7")]


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n0,1.5\n1,2.")
    resumed = MetricsCSV(path)
    resumed.rewind(5)
    resumed.log_metrics({"a": 3.5}, step=1)
    assert [row["a"] for row in read_metrics(path)[1]] == ["1.5", "3.5"]


def test_no_file_is_no_rows(tmp_path):
    MetricsCSV(tmp_path / "metrics.csv").rewind(3)
    assert read_metrics(tmp_path / "metrics.csv") == ([], [])
    assert not list(tmp_path.iterdir())
