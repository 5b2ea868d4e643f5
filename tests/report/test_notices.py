from sidepipe.report.notices import notices


def of_data(**summary):
    return notices({"summary": summary}, {"summary": {}}, [])


def test_files_that_were_not_read_are_counted_by_kind():
    assert of_data(
        left_out=[[".heic (HEIF, which needs pillow-heif)", 10], ["without suffix", 2]]
    ) == ["12 files are not read: 10 .heic (HEIF, which needs pillow-heif), 2 without suffix."]
    assert of_data(left_out=[], skipped=[]) == of_data() == []
    both = of_data(left_out=[[".zip", 1]], skipped=["a.png"])
    assert len(both) == 2
    assert both[1] == "1 file is not read: 1 .zip."
