from pathlib import Path
def report(runs, out=None):
    p = Path(runs[0]) / "report.html"
    p.write_text("x")
    return p
