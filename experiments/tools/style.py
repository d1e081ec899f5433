"""The colors and the headings that all pictures share."""

INK, GREY, PALE = "#222222", "#b8b8b8", "#dcdcdc"
BLUE, PALE_BLUE, RED = "#2166ac", "#92b9dd", "#d6604d"


def style(axis, title: str, x: str = "", y: str = "") -> None:
    """Give the axes of a plot a title, labels and small ticks."""
    axis.set_title(title, fontsize=9, loc="left", color=INK)
    axis.set_xlabel(x, fontsize=8, color=INK)
    axis.set_ylabel(y, fontsize=8, color=INK)
    axis.tick_params(labelsize=7, color=GREY, labelcolor=INK)
    axis.spines[["top", "right"]].set_visible(False)


def heading(figure, text: str) -> None:
    """Write the heading of a figure or of a part of it."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)
