from ._picture import picture
from ._svg import draw
def to_svg(program): return draw(picture(program))
