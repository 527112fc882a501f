#!/bin/sh
# Install the Debian packages of Latin faces that `hf_vlm.data.ocr_lines` draws with: text, typewriter, till and
# handwriting faces, all free. Needs root and apt-get; a package that this release lacks is skipped with a note.
#
#   sh scripts/install_fonts.sh          install
#   sh scripts/install_fonts.sh --list   print the packages
set -eu

book='fonts-adf-accanthis fonts-adf-baskervald fonts-adf-berenis fonts-adf-romande fonts-adf-tribun fonts-cmu
fonts-crosextra-caladea fonts-ebgaramond fonts-essays1743 fonts-fanwood fonts-freefont-ttf
fonts-gfs-artemisia fonts-gfs-bodoni-classic fonts-gfs-didot fonts-gfs-olga fonts-goudybookletter fonts-junicode
fonts-jsmath fonts-liberation fonts-lindenhill fonts-linuxlibertine fonts-lmodern fonts-oldstandard fonts-prociono
fonts-quattrocento fonts-sil-charis fonts-sil-gentiumplus fonts-stix fonts-texgyre fonts-urw-base35 fonts-vollkorn'

sans='fonts-adf-gillius fonts-adf-switzera fonts-adf-universalis fonts-adf-verana fonts-cabin fonts-cantarell
fonts-crosextra-carlito fonts-dejavu-core fonts-dosis fonts-lato fonts-noto-core fonts-open-sans
fonts-oxygen fonts-play fonts-ubuntu fonts-yanone-kaffeesatz'

typewriter_and_till='fonts-anonymous-pro fonts-atarismall fonts-courier-prime fonts-gnutypewriter fonts-hack
fonts-inconsolata fonts-mononoki fonts-noto-mono fonts-ocr-a fonts-ocr-b fonts-pc fonts-spleen fonts-sixtyfour
fonts-terminus-otb fonts-vt323 fonts-3270'

handwriting='fonts-breip fonts-bwht fonts-comic-neue fonts-dancingscript fonts-dkg-handwriting
fonts-ecolier-court fonts-femkeklaver fonts-havana fonts-humor-sans fonts-isabella fonts-joscelyn
fonts-kaushanscript fonts-kristi fonts-levien-typoscript fonts-rufscript fonts-sjfonts fonts-summersby
fonts-tomsontalks fonts-radisnoir'

packages="$book $sans $typewriter_and_till $handwriting"
if [ "${1:-}" = --list ]; then
    printf '%s\n' $packages
    exit
fi

apt-get update -qq || true
known=
for package in $packages; do
    if apt-cache policy "$package" | grep -q 'Candidate: [^(]'; then
        known="$known $package"
    else
        echo "install_fonts.sh: no package $package here, skipped" >&2
    fi
done
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends fontconfig $known
